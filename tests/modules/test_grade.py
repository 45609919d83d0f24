"""A grade as features: known, predicted, and what stands for it where it is missing."""

from __future__ import annotations

from dataclasses import replace

import torch
from inputs_by_hand import LEVELS, inputs_by_hand, reading

from prectr_torchrec.modules import Inputs, KnownGrade, TextReading

GRADES = [1.0, 2.0, 3.0, 5.0]


def part(missing: str) -> KnownGrade:
    torch.manual_seed(0)
    return KnownGrade(GRADES, (1.0, 5.0), dim=3, missing=missing)


def inputs_of_grades() -> Inputs:
    """Three requests of two candidates: a grade and none, two predicted ones, and none at all."""
    torch.manual_seed(1)
    inputs = inputs_by_hand(3)
    nan, predicted = torch.nan, torch.zeros(6, LEVELS)
    predicted[2:4] = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]])
    grades = {"level": torch.tensor([3, 0, 0, 0, 0, 0]), "relevance": torch.tensor([2.6, nan, nan, nan, nan, nan])}
    return replace(inputs, candidate={**inputs.candidate, **grades, "predicted": predicted})


def test_a_missing_grade_is_marked() -> None:
    module, inputs = part("marked"), inputs_of_grades()
    vectors, grade, missing = module(inputs, reading(6)).features.split([3, 1, 1], dim=1)
    e = module.level.weight
    expected = torch.stack([e[3], e[0], e[0] + (e[1] + e[3]) / 2, e[0] + e[4], e[0], e[0]])
    torch.testing.assert_close(vectors, expected)
    torch.testing.assert_close(grade.squeeze(1), torch.tensor([0.4, 0.0, 0.25, 1.0, 0.0, 0.0]))
    assert missing.squeeze(1).tolist() == [0, 1, 1, 1, 1, 1]


def test_what_is_modelled_takes_the_towers_levels_where_nothing_is_known() -> None:
    module, inputs, text = part("modelled"), inputs_of_grades(), reading(6)
    text.relevance.log_pi.requires_grad_()
    features = module(inputs, text).features
    marked = part("marked")(inputs, text).features
    known = torch.tensor([True, False, True, True, False, False])
    assert features.shape == (6, module.num_features) == (6, 6)
    assert features[known, :5].equal(marked[known])
    pi = text.relevance.log_pi.exp()[~known]
    torch.testing.assert_close(features[~known, :3], module.level.weight[0] + pi @ module.level.weight[1:])
    torch.testing.assert_close(features[~known, 3], pi @ (torch.tensor(GRADES) - 1) / 4)
    assert features[:, 5].tolist() == [0, 0, 0, 0, 1, 1]  # of the requests, the last one alone has no grade
    features.sum().backward()
    assert text.relevance.log_pi.grad is None


def test_without_levels_of_its_own_a_ranker_says_which_requests_have_grades() -> None:
    module, inputs = part("modelled"), inputs_of_grades()
    features = module(inputs, TextReading.of_nothing(inputs.candidate_weight)).features
    assert features[:, :5].equal(part("marked")(inputs, reading(6)).features)
    assert features[:, 5].tolist() == [0, 0, 0, 0, 1, 1]


def test_a_hidden_grade_is_one_of_a_request_without_any() -> None:
    module, inputs, text = part("modelled"), inputs_of_grades(), reading(6)
    first = torch.arange(6) == 0
    features = module(inputs.without_grades(first), text).features
    assert features[0, 4:].tolist() == [1, 1]
    assert features[1:].equal(module(inputs, text).features[1:])
