"""The cross network in front of the perceptron."""

from __future__ import annotations

import pytest
import torch
from inputs_by_hand import WIDTHS, inputs_by_hand

from prectr_torchrec.modules import LookedUpFeatures, PastCounts
from prectr_torchrec.modules.rankers.dcn import DCN
from prectr_torchrec.modules.rankers.dnn import DNN


@pytest.fixture
def model() -> DCN:
    torch.manual_seed(0)
    return DCN({"features": LookedUpFeatures(WIDTHS), "counts": PastCounts()}, cross_layers=2, tower=[8, 4]).eval()


def test_scores_are_those_of_the_formula(model: DCN) -> None:
    torch.manual_seed(1)
    inputs = inputs_by_hand(3)
    names = ["user_id", "query_id", "item_id", "brand_id"]
    x0 = torch.cat([inputs.rows(names), (inputs.counts()[:, :3].log1p() / 4)[inputs.candidate_request]], dim=1)
    x, cross = x0, model.tower.cross
    for w, v, b in zip(cross.W_kernels, cross.V_kernels, cross.bias, strict=True):
        x = x0 * (w @ (v @ x.T) + b.view(-1, 1)).T + x
    expected = model.tower.head(model.tower.layers(x)).squeeze(1)
    torch.testing.assert_close(model(inputs).ranking["click"].logit, expected)


def test_a_cross_network_of_zeros_is_none(model: DCN) -> None:
    inputs = inputs_by_hand(2)
    plain = DNN({"features": LookedUpFeatures(WIDTHS), "counts": PastCounts()}, tower=[8, 4]).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if ".cross." not in name})
    for weight in model.tower.cross.parameters():
        torch.nn.init.zeros_(weight)
    torch.testing.assert_close(model(inputs).ranking["click"].logit, plain(inputs).ranking["click"].logit)
