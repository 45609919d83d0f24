"""What rankers read of a batch: features by name, counts, counters, and a batch with something taken out of it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from inputs_by_hand import LEVELS, WIDTHS, inputs_by_hand
from torch import Tensor

from prectr_torchrec.modules import Inputs
from prectr_torchrec.modules.inputs import Whose

OF_PAST = {
    "own": {"user_events", "user_query_events", "user_shown", "user_clicked", "user_examined"},
    "peers": {"query_events", *(f"{who}_{what}" for who in ("query", "group") for what in ("shown", "clicked", "examined"))},
}
SEQUENCE = {"own": "history", "peers": "peer"}


@pytest.fixture
def inputs() -> Inputs:
    torch.manual_seed(0)
    return inputs_by_hand(3)


def test_a_candidate_has_its_own_features_and_those_of_its_request(inputs: Inputs) -> None:
    rows = inputs.rows(["query_id", "item_id"])
    assert rows.equal(torch.cat([inputs.request["query_id"].repeat_interleave(2, 0), inputs.candidate["item_id"]], dim=1))
    assert inputs.rows([]).shape == (6, 0)
    assert inputs.rows_of_requests(["query_id", "user_id"]).shape == (3, 12)


def test_counts_that_are_not_given_are_zero(inputs: Inputs) -> None:
    expected = [inputs.request[name] for name in ("user_events", "user_query_events", "query_events")]
    assert inputs.counts().equal(torch.cat([*expected, torch.tensor([[0.0], [1.0], [2.0]])], dim=1))
    assert replace(inputs, request={}, sequences={}).counts().equal(torch.zeros(3, 4))


def test_what_was_shown_counts_as_examined_where_nothing_else_is_known(inputs: Inputs) -> None:
    request = {name: value for name, value in inputs.request.items() if name != "user_examined"}
    shown, clicked, examined = replace(inputs, request=request).counters("user")
    assert examined is shown is inputs.request["user_shown"] and clicked is inputs.request["user_clicked"]
    assert inputs.counters("group")[2] is inputs.request["group_examined"]
    assert inputs.counters("item") == tuple(inputs.candidate[name] for name in ("shown", "clicked", "examined"))


def test_events_are_compared_by_the_named_features_side_by_side(inputs: Inputs) -> None:
    events = inputs.sequences["history"]
    past = events.compared_by(["query_id", "item_id"])
    assert past.events is events
    assert past.vectors.equal(torch.cat([events.features["query_id"], events.features["item_id"]], dim=2))


def test_rows_by_level_are_means_where_the_level_is_predicted(inputs: Inputs) -> None:
    table = torch.randn(LEVELS + 1, 2, 3)
    events = inputs.sequences["history"]
    level = events.features["level"]
    assert events.by_level(table).equal(table[level])
    predicted = torch.zeros(*level.shape, LEVELS)
    none = events._replace(features={**events.features, "predicted": predicted[:, :0]})
    assert none.by_level(table).equal(table[level])
    predicted[1, 0] = torch.tensor([0.5, 0.0, 0.0, 0.5])
    rows = events._replace(features={**events.features, "predicted": predicted}).by_level(table)
    torch.testing.assert_close(rows[1, 0], (table[1] + table[4]) / 2)
    rows[1, 0] = table[level[1, 0]]
    torch.testing.assert_close(rows, table[level])


def test_hidden_grades_are_hidden_in_all_of_their_forms(inputs: Inputs) -> None:
    rows = torch.tensor([True, False, False, False, False, False])  # its request has another grade
    for hidden, other in ((rows, inputs.without_grades(rows)), (torch.ones(6) > 0, inputs.without_grades())):
        level, relevance, predicted = (other.candidate[name] for name in ("level", "relevance", "predicted"))
        assert level[hidden].eq(0).all() and relevance[hidden].isnan().all() and predicted[hidden].eq(0).all()
        kept = {"level": level, "relevance": relevance, "predicted": predicted}
        for name, value in kept.items():
            torch.testing.assert_close(value[~hidden], inputs.candidate[name][~hidden], equal_nan=True)
        assert other.graded.equal(~hidden) and other.of_graded_requests().equal(~hidden)
        unchanged = {name for name, value in other.candidate.items() if value is inputs.candidate.get(name)}
        assert unchanged == inputs.candidate.keys() - kept.keys()
        assert other.sequences is inputs.sequences


def test_one_grade_makes_a_graded_request(inputs: Inputs) -> None:
    level, predicted = torch.tensor([0, 2, 0, 0, 0, 1]), torch.zeros(6, LEVELS)
    predicted[2, 1] = 1.0
    candidate = {"level": level, "predicted": predicted, "relevance": torch.where(level > 0, level.float(), torch.nan)}
    found = replace(inputs, candidate=candidate, candidate_weight=torch.tensor([1.0, 1, 1, 1, 1, 0]))
    assert found.graded.tolist() == [False, True, True, False, False, True]
    assert found.of_graded_requests().tolist() == [True, True, True, True, False, False]  # padding gives no request a grade
    again = found.without_grades(torch.tensor([False, True, False, False, False, False]))
    assert again.of_graded_requests().tolist() == [True, False, True, True, False, False]


@pytest.mark.parametrize("whose", get_args(Whose))
def test_without_a_past_all_else_is_shared(inputs: Inputs, whose: Whose) -> None:
    other = inputs.without_past(whose)
    changed = {name for name, value in other.request.items() if value is not inputs.request[name]}
    assert changed == OF_PAST[whose] and not any(other.request[name].any() for name in changed)
    for name, events in other.sequences.items():
        assert events.features is inputs.sequences[name].features
        assert (events.lengths is inputs.sequences[name].lengths) == (name != SEQUENCE[whose])
    assert not other.sequences[SEQUENCE[whose]].lengths.any()
    same = {field.name for field in fields(Inputs)} - {"request", "sequences"}
    assert all(getattr(other, name) is getattr(inputs, name) for name in same)


def test_slots_hold_the_real_candidates_of_each_request(inputs: Inputs) -> None:
    weight = torch.tensor([1.0, 1, 1, 1, 1, 0])
    slots = replace(inputs, candidate_weight=weight).slots
    rows = torch.arange(12.0).view(6, 2)
    there: Tensor = slots.scatter(rows)
    assert there.shape == (3, 2, 2) and there[2, 1].eq(0).all()
    assert slots.gather(there)[:5].equal(rows[:5])


def test_an_event_is_compared_with_its_candidate_before_its_request() -> None:
    widths = WIDTHS._replace(request={**WIDTHS.request, "brand_id": 99})
    assert widths.compared("brand_id") == WIDTHS.candidate["brand_id"] and widths.compared("query_id") == 6
