"""Several rankers as one: the formula, whose word stands, and what cannot be put together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inputs_by_hand import inputs_by_hand

from prectr_torchrec.modules import (
    DualInteraction,
    Examination,
    GaussianTitles,
    Inputs,
    LookedUpFeatures,
    NgramEncoder,
    Predictions,
    RankingModel,
    TextMatch,
    TextRelevance,
    Widths,
)
from prectr_torchrec.modules.parts.base import ReportedPart
from prectr_torchrec.modules.rankers.dnn import DNN
from prectr_torchrec.modules.rankers.fused import Fused
from prectr_torchrec.modules.rankers.mixed_effects import MixedEffects
from prectr_torchrec.modules.rankers.prectr import PRECTR


def member(width: int, position: int | None = None) -> DNN:
    widths = Widths(request={}, candidate={"item_id": width}, sequences={})
    return DNN({"features": LookedUpFeatures(widths)}, tower=[4], position=Examination(position) if position else None)


@pytest.fixture
def inputs() -> Inputs:
    torch.manual_seed(0)
    candidate = {"item_id": torch.randn(3, 8), "position": torch.tensor([1, 2, 3])}
    return Inputs({}, candidate, {}, {}, torch.ones(2), torch.tensor([0, 0, 1]), torch.ones(3))


def test_the_logit_is_the_weighted_sum_and_positions_are_examined_once(inputs: Inputs) -> None:
    model = Fused({"one": member(8, 3), "other": member(8)}, position=Examination(3)).eval()
    model.start_from([1.0, 0.5, 0.25])
    with torch.no_grad():
        model.weights.copy_(torch.tensor([0.25, 2.0]))
        model.bias.fill_(0.5)
    out = model(inputs)
    one, other = (model.members[name](inputs).ranking["click"].logit for name in ("one", "other"))
    z = 0.5 + 0.25 * one + 2.0 * other
    torch.testing.assert_close(out.ranking["click"].logit, z)
    torch.testing.assert_close(out.logged["click"].log_yes.exp(), z.sigmoid() * torch.tensor([1.0, 0.5, 0.25]))


def test_weights_start_equal_and_all_learns(inputs: Inputs) -> None:
    model = Fused({"one": member(8), "other": member(8)})
    assert model.weights.tolist() == [0.5, 0.5] and not model.bias
    model.train()(inputs).logged["click"].log_yes.sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_what_members_report_is_reported_the_first_ones_word_first(inputs: Inputs) -> None:
    class Says(RankingModel):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = torch.tensor(value)
            self.reported = {"same": ReportedPart(f"says {value}"), f"own_{value:.0f}": ReportedPart("its own")}

        def forward(self, inputs: Inputs) -> Predictions:
            said = self.value.repeat(len(inputs.candidate_weight))
            found = member(8)(inputs)
            parts = {"same": said, f"own_{self.value:.0f}": said} if self.reports_parts else {}
            return Predictions(found.ranking, found.logged, parts)

    model = Fused({"one": Says(1.0), "other": Says(2.0)}).eval()
    assert not model(inputs).parts
    model.reports_parts = True
    parts = model(inputs).parts
    assert parts.keys() == model.reported.keys() == {"same", "own_1", "own_2", "one_logit", "other_logit"}
    assert parts["same"].tolist() == [1.0] * 3 and model.reported["same"].meaning == "says 1.0"
    assert not any(ranker.reports_parts for ranker in model.members.values())  # other threads keep their own switch


def reader(encoder: bool) -> PRECTR:
    match = TextMatch(idf=torch.full((50,), 2.0), is_number=torch.zeros(50, dtype=torch.bool))
    encodes = DualInteraction(NgramEncoder(rows=100, embedding_dim=8, hidden=(16,))) if encoder else None
    relevance = TextRelevance(encodes, match, [8], num_levels=4)
    parts = {"ids": LookedUpFeatures(Widths(request={}, candidate={"item_id": 8}, sequences={}))}
    return PRECTR(relevance, parts, num_levels=4, click_tower=[4])


def test_the_text_side_is_that_of_the_member_with_an_encoder() -> None:
    plain, encoding = reader(encoder=False), reader(encoder=True)
    model = Fused({"none": member(8), "plain": plain, "encoding": encoding})
    assert model.text_side() is encoding.relevance
    assert Fused({"none": member(8), "plain": plain}).text_side() is plain.relevance
    assert Fused({"none": member(8)}).text_side() is None
    both = [*plain.relevance.parameters(), *encoding.relevance.tower.parameters()]
    assert {id(p) for p in both} == {id(p) for p in model.groups()["relevance"]}
    with pytest.raises(ValueError, match="one of them at most may have a text encoder"):
        Fused({"one": reader(encoder=True), "other": reader(encoder=True)})
    with pytest.raises(ValueError, match="name one at least"):
        Fused({})


@pytest.mark.parametrize("requests", [1, 3])
def test_it_takes_the_inputs_of_its_members(requests: int) -> None:
    inputs = inputs_by_hand(requests)
    width = inputs.candidate["item_id"].shape[1]
    model = Fused({"one": member(width), "other": member(width)})
    assert model(inputs).ranking["click"].logit.shape == inputs.candidate_weight.shape


def test_words_have_the_weight_of_the_member_that_knows_them(inputs: Inputs) -> None:
    titles = GaussianTitles(50, 2, words=[5])
    mixed = MixedEffects({"user_effect": 4}, [], rank=2, level_grades=[1.0, 3.0], grade_range=(1.0, 3.0), title=titles)
    model = Fused({"one": member(8), "mixed": mixed}).eval()
    with torch.no_grad():
        model.weights.copy_(torch.tensor([2.0, 0.25]))
    with_user = replace(inputs, request={"user_effect": torch.randn(2, 8)})
    own, found = mixed.word_taste(with_user), model.word_taste(with_user)
    assert own is not None and found is not None and own.worth.any()
    torch.testing.assert_close(found.worth, 0.25 * own.worth)
    assert Fused({"one": member(8)}).word_taste(inputs) is None
