"""Counters of labels: golden values, and nothing where nothing happened."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inputs_by_hand import counted, inputs_by_hand, reading

from prectr_torchrec.modules import Inputs, LabelCounters

LABELS = {"cart": "click", "order": "cart"}


def inputs_with_labels(requests: int) -> Inputs:
    """As of `inputs_by_hand`, with counters of orders too."""
    inputs = inputs_by_hand(requests)
    of_users, of_items = {"user_orders": counted(requests, 5)}, {"orders": counted(2 * requests, 1)}
    return replace(inputs, request=inputs.request | of_users, candidate=inputs.candidate | of_items)


def test_golden_values() -> None:
    inputs = inputs_with_labels(1)
    counts = {"clicked": 10.0, "carts": 6.0, "orders": 1.0}
    inputs.request.update({f"user_{what}": torch.tensor([[0.0, count, 0, 0, 0]]) for what, count in counts.items()})
    features = LabelCounters(["user"], LABELS)(inputs, reading(2)).features
    volume = torch.tensor([7.0, 2.0]).log() / 4
    surplus = torch.tensor([3 * (6 - 0.2 * 10) / (10 + 5), 3 * (1 - 0.2 * 6) / (6 + 5)])
    torch.testing.assert_close(features, torch.cat([volume, surplus]).expand(2, 4))


@pytest.mark.parametrize("requests", [1, 3])
def test_those_of_users_are_each_candidates_and_those_of_items_its_own(requests: int) -> None:
    inputs = inputs_with_labels(requests)
    inputs.candidate["orders"] = torch.arange(2.0 * requests).unsqueeze(1)
    both = LabelCounters(["user", "item"], LABELS)(inputs, reading(2 * requests)).features
    assert both.shape == (2 * requests, 8)
    user, item = (LabelCounters([who], LABELS)(inputs, reading(2 * requests)).features for who in ("user", "item"))
    torch.testing.assert_close(both, torch.cat([user, item], dim=1))
    assert (user[0::2] == user[1::2]).all() and not torch.equal(item[0], item[1])


def test_what_never_happened_is_zero() -> None:
    inputs = inputs_with_labels(2)
    for columns in (inputs.request, inputs.candidate):
        columns.update({name: torch.zeros_like(value) for name, value in columns.items()})
    assert LabelCounters(["user", "item"], LABELS)(inputs, reading(4)).features.eq(0).all()
