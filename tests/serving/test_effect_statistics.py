"""Sums of effects kept event by event; that they equal the samples' is in `training/test_fuse.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prectr_torchrec.serving.effect_statistics import EffectStatistics, shown_effects

EVENT: dict[str, Any] = {"user_id": 1, "query_id": 10, "x": np.array([1.0, -2.0, 0.5]), "probability": 0.25, "click": 1}


def test_own_events_are_the_users_and_no_ones_peers() -> None:
    statistics = EffectStatistics({"user": 3, "query": 2})
    statistics.add(**EVENT)
    statistics.add(**{**EVENT, "user_id": 2, "click": 0})
    statistics.add(**{**EVENT, "user_id": 0, "x": np.array([1.0, 0.0, 0.0])})  # nobody known: others to everybody
    mine = statistics.look_up(1, 10)
    s, i = 0.75, 0.25 * 0.75
    np.testing.assert_allclose(mine["user_sums"], [s, -2 * s, s / 2, i, -2 * i, i / 2, 4 * i, -i, i / 4])
    of_two, of_nobody = [-0.25, 0.5, i, -2 * i, 4 * i], [s, 0, i, 0, 0]
    np.testing.assert_allclose(mine["query_sums"], np.add(of_two, of_nobody), atol=1e-7)
    np.testing.assert_allclose(
        statistics.look_up(0, 10)["query_sums"], np.add([s, -2 * s, i, -2 * i, 4 * i], np.add(of_two, of_nobody))
    )
    assert not statistics.look_up(0, 0)["user_sums"].any() and not statistics.look_up(3, 11)["query_sums"].any()


def test_a_click_that_becomes_known_later_ends_in_the_same_sums() -> None:
    late, at_once = EffectStatistics({"user": 3, "query": 2}), EffectStatistics({"user": 3, "query": 2})
    at_once.add(**EVENT)
    late.add(**{**EVENT, "click": 0})
    assert not np.allclose(late.look_up(1, 10)["user_sums"], at_once.look_up(1, 10)["user_sums"])
    late.add_click(1, 10, EVENT["x"])
    for user in (1, 2):
        expected = at_once.look_up(user, 10)
        for name, sums in late.look_up(user, 10).items():
            np.testing.assert_allclose(sums, expected[name], atol=1e-7)


@pytest.mark.parametrize("wrong", [{"click": 2}, {"probability": 1.5}, {"x": np.zeros(2)}, {"x": np.zeros((1, 3))}])
def test_an_event_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected 0 or 1, a probability, and 3 numbers"):
        EffectStatistics({"user": 3}).add(**{**EVENT, **wrong})


def test_sums_of_other_effects_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sums of effects {'user': 3}, here they are {'user': 2}; add the events anew"):
        EffectStatistics({"user": 2}).load_state_dict(EffectStatistics({"user": 3}).state_dict())


def test_a_ranker_without_effects_is_refused(ranker: Any) -> None:
    with pytest.raises(ValueError, match="a ranker of kind 'prectr' has no mixed effects"):
        shown_effects(ranker, {"query": "red lamp", "candidates": [{"item_id": 7}]})
