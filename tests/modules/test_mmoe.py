"""Experts and gates: against the formula, and labels of one gate and head that say the same."""

from __future__ import annotations

import torch
from inputs_by_hand import WIDTHS, inputs_by_hand

from prectr_torchrec.modules import ExpertTower, LookedUpFeatures
from prectr_torchrec.modules.rankers.mmoe import MMoE


def test_logits_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    tower, x = ExpertTower(6, num_experts=3, expert=[5, 4], tower=[2], labels=["order"]).eval(), torch.randn(7, 6)
    found = tower(x)
    assert list(found) == ["click", "order"]
    for label, logit in found.items():
        gate = (x @ tower.gates[f"of_{label}"].weight.T).softmax(1)
        mixed = sum(gate[:, e : e + 1] * expert(x) for e, expert in enumerate(tower.experts))
        torch.testing.assert_close(logit, tower.heads[f"of_{label}"](mixed))
    assert not torch.allclose(found["click"], found["order"])


def test_one_expert_is_a_shared_bottom_whatever_the_gates_are() -> None:
    tower, x = ExpertTower(6, num_experts=1, expert=[5], tower=[], labels=["order"]).eval(), torch.randn(4, 6)
    before = tower(x)
    torch.nn.init.normal_(tower.gates["of_order"].weight)
    after = tower(x)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(after["order"], tower.heads["of_order"](tower.experts[0](x)))


def test_shifts_and_positions_are_as_of_other_rankers() -> None:
    model = MMoE({"features": LookedUpFeatures(WIDTHS)}, num_experts=2, expert=[8], tower=[4], labels={"carts": "click"}).eval()
    inputs = inputs_by_hand(3)
    found = model(inputs)
    torch.testing.assert_close(found.logged["click"].logit, found.ranking["click"].logit)  # no position has a part
    torch.testing.assert_close(
        found.ranking["click"].logit, model.tower(model.parts["features"](inputs, None).features)["click"].squeeze(1)
    )
