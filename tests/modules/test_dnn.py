"""The ranker of features and a perceptron: what it reads, and what it gives where nothing is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inputs_by_hand import LEVELS, VOCABULARY, WIDTHS, inputs_by_hand

from prectr_torchrec.modules import (
    Counters,
    Examination,
    Inputs,
    KnownGrade,
    LookedUpFeatures,
    MatchFeatures,
    PastCounts,
    TextMatch,
)
from prectr_torchrec.modules.rankers.dnn import DNN

GRADES = [float(level) for level in range(1, LEVELS + 1)]


@pytest.fixture
def model() -> DNN:
    torch.manual_seed(0)
    match = TextMatch(idf=torch.rand(VOCABULARY) + 1, is_number=torch.zeros(VOCABULARY, dtype=torch.bool))
    parts = {
        "features": LookedUpFeatures(WIDTHS),
        "counts": PastCounts(),
        "statistics": Counters(["user", "query", "item"], LEVELS),
        "grade": KnownGrade(GRADES, (1.0, 4.0)),
        "match": MatchFeatures(match),
    }
    return DNN(parts, tower=[8, 4], position=Examination(5)).eval()


@pytest.fixture
def inputs() -> Inputs:
    torch.manual_seed(1)
    return inputs_by_hand(3)


def test_scores_are_the_same_from_one_seed_to_the_last_digit(model: DNN, inputs: Inputs) -> None:
    logit = model(inputs).ranking["click"].logit
    assert logit.isfinite().all() and logit.unique().numel() == len(logit)
    torch.testing.assert_close(logit, torch.tensor([0.10486, 0.08199, 0.11065, 0.1529, 0.20109, 0.14151]), atol=1e-4, rtol=0)


def test_it_is_the_tower_over_its_parts_side_by_side(model: DNN, inputs: Inputs) -> None:
    query, title, request = inputs.texts["query"], inputs.texts["title"], inputs.candidate_request
    match = model.parts["match"].match(query.tokens[query.rows[request]], title.tokens[title.rows])
    widths = [part.num_features for part in model.parts.values()]
    seen: list[torch.Tensor] = []
    model.tower.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    out = model(inputs)
    features = dict(zip(model.parts, seen[0].split(widths, dim=1), strict=True))
    assert features["match"].equal(match)
    assert features["features"].equal(inputs.rows(["user_id", "query_id", "item_id", "brand_id"]))
    torch.testing.assert_close(out.ranking["click"].logit, model.tower(seen[0])["click"].squeeze(1))


def test_the_position_moves_what_was_logged_and_not_what_ranks(model: DNN, inputs: Inputs) -> None:
    model.start_from([1.0, 0.5])
    out, position = model(inputs), inputs.candidate["position"]
    ratio = (out.logged["click"].log_yes - out.ranking["click"].log_yes).exp()
    torch.testing.assert_close(ratio, torch.where(position == 2, 0.5, 1.0))


def test_a_request_alone_scores_as_among_others(model: DNN, inputs: Inputs) -> None:
    first = replace(
        inputs,
        request={name: values[:1] for name, values in inputs.request.items()},
        candidate={name: values[:2] for name, values in inputs.candidate.items()},
        sequences={},
        texts={name: text._replace(rows=text.rows[: 1 if name == "query" else 2]) for name, text in inputs.texts.items()},
        request_weight=torch.ones(1),
        candidate_request=torch.zeros(2, dtype=torch.long),
        candidate_weight=torch.ones(2),
    )
    torch.testing.assert_close(model(first).ranking["click"].logit, model(inputs).ranking["click"].logit[:2])


def test_missing_grades_and_a_missing_past_are_no_hole(model: DNN, inputs: Inputs) -> None:
    for other in (inputs.without_grades(), inputs.without_past("own"), inputs.without_past("peers")):
        changed = model(other).ranking["click"].logit
        assert changed.isfinite().all() and not changed.equal(model(inputs).ranking["click"].logit)


def test_every_weight_learns(model: DNN, inputs: Inputs) -> None:
    out = model.train()(inputs)
    assert not out.parts and not model.reported and model.text_side() is None
    (-out.logged["click"].log_yes.mean()).backward()
    silent = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert silent == set()
