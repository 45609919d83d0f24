"""Ids and lists of ids in requests: as the log writes them, optional, and named where they or their weights are wrong."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from serving_requests import plain_requests
from small_run import small_config

from prectr_torchrec import Ranker
from prectr_torchrec.data.hashing import hash_id
from prectr_torchrec.serving.request import RequestError, RequestSchema

SCHEMA = RequestSchema(small_config().data)
OF_TEXT = RequestSchema(small_config().data, {"tags": "text", "device": "text", "interests": "integer"})


def request_with(**values: Any) -> dict[str, Any]:
    """A request of one candidate, which has those of the values that are its own."""
    own = ("tags", "tag_scores", "badges", "engine")
    candidate = {"item_id": 1, **{name: values.pop(name) for name in own if name in values}}
    return {"query": "q", "candidates": [candidate], **values}


def test_ids_come_as_the_log_writes_them() -> None:
    given = request_with(device="phone", user_interests=[3, 4], tags=["red", "new"], tag_scores=[0.5, 2], badges=[7], engine=2)
    row = OF_TEXT.from_plain([given]).to_pylist()[0]
    assert row["device"] == hash_id("phone") and row["user_interests"] == [3, 4]
    assert row["candidate_tags"] == [[hash_id("red"), hash_id("new")]] and row["candidate_tag_scores"] == [[0.5, 2.0]]
    assert row["candidate_badges"] == [[7]] and row["candidate_engine"] == [2]


def test_missing_ids_are_normal_and_ids_without_weights_count_one_each() -> None:
    nothing = SCHEMA.from_plain([request_with()])
    told = request_with(**dict.fromkeys(("device", "user_interests", "tags", "tag_scores", "badges", "engine")))
    assert SCHEMA.from_plain([told]).equals(nothing)
    row = nothing.to_pylist()[0]
    assert row["device"] == 0 and row["user_interests"] == [] and row["candidate_tags"] == [[]]
    candidates = {"item_id": [1, 2, 3], "tags": [[5], None, [6, 7]], "tag_scores": [[0.5], None, None]}
    row = SCHEMA.from_plain([{"query": "q", "candidates": candidates}]).to_pylist()[0]
    assert row["candidate_tag_scores"] == [[0.5], [], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"user_interests": 3}, "user_interests: got 3 (int); expected a list of at most 1,000, each a 64-bit integer"),
        ({"user_interests": [1, None]}, "user_interests: got [1, None] (list); expected a list of at most 1,000"),
        ({"badges": [1.5]}, "candidates[0].badges: got [1.5] (list); expected a list of at most 1,000"),
        ({"badges": [1] * 1001}, "candidates[0].badges: got [1, 1, 1, 1, 1, 1, ...] (list of 1,001); expected a list of at"),
        ({"tags": [1, 2], "tag_scores": [1]}, "candidates[0].tag_scores: got 1 weights; expected 2, one for each of tags"),
        ({"tag_scores": [1]}, "candidates[0].tag_scores: got 1 weights; expected 0, one for each of tags"),
        ({"tags": [1], "tag_scores": [-1]}, "candidates[0].tag_scores: got [-1] (list); expected a list, for each of 'tags' a"),
        ({"tags": [1], "tag_scores": [math.nan]}, "candidates[0].tag_scores: got [nan] (list); expected a list, for each of"),
        ({"device": 1.5}, "device: got 1.5 (float); expected a 64-bit integer or a text"),
    ],
)
def test_wrong_ids_and_weights_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        SCHEMA.from_plain([request_with(**values)], name=None)


def test_a_table_may_have_them_in_any_form() -> None:
    columns = {
        "query": ["a", "b"],
        "candidate_item_id": [[1], [2, 3]],
        "device": ["phone", None],
        "user_interests": pa.array([[3], None], pa.list_(pa.uint64())),
        "candidate_tags": [[["red"]], [None, ["new", "old"]]],
        "candidate_tag_scores": pa.array([[[0.5]], [None, None]], pa.list_(pa.list_(pa.float64()))),
    }
    taken = OF_TEXT.from_arrow(pa.table(columns))
    assert taken["device"].to_pylist() == [hash_id("phone"), 0] and taken["user_interests"].to_pylist() == [[3], []]
    assert taken["candidate_tags"].to_pylist() == [[[hash_id("red")]], [[], [hash_id("new"), hash_id("old")]]]
    assert taken["candidate_tag_scores"].to_pylist() == [[[0.5]], [[], [1.0, 1.0]]]
    assert taken["candidate_badges"].to_pylist() == [[[]], [[], []]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_interests": [[1, None], []]}, "user_interests: got 1 nulls; expected a list of at most 1,000"),
        ({"user_interests": [[1] * 1001, []]}, "row 0: user_interests: got [1, 1, 1, 1, 1, 1, ...] (list of 1,001)"),
        (
            {"candidate_tags": [[[1]], [[], [2]]], "candidate_tag_scores": [[[1.0]], [[], [1.0, 2.0]]]},
            "row 1: candidate_tag_scores[1]: got 2 weights; expected 1, one for each of tags",
        ),
        (
            {"candidate_tags": [[[1]], [[], [2]]], "candidate_tag_scores": [[[1.0]], [[], [-1.0]]]},
            "row 1: candidate_tag_scores[1]: got [-1.0] (list); expected a list, for each of 'tags' a number from 0",
        ),
        ({"candidate_badges": [[1], [2, 3]]}, "candidate_badges: got a column of list<item: int64>"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(columns: dict[str, Any], message: str) -> None:
    table = pa.table({"query": ["a", "b"], "candidate_item_id": [[1], [2, 3]], **columns})
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        SCHEMA.from_arrow(table)


def test_a_ranker_scores_by_ids_and_without_them(exported: Any, ranker: Ranker) -> None:
    sample = exported.samples.slice(0, 1)
    (request,) = plain_requests(sample)
    of_table = ranker.score(sample)["click_probability"].to_pylist()

    def scored(changed: dict[str, Any]) -> list[float]:
        return [float(p) for p in ranker.score(changed).click_probability]

    def with_each(**values: Any) -> list[float]:
        return scored({**request, "candidates": [{**candidate, **values} for candidate in request["candidates"]]})

    assert scored(request) == pytest.approx(of_table, abs=1e-6)
    assert with_each(tags=[], tag_scores=[], badges=[]) != scored(request)
    assert scored({**request, "user_interests": [3, 4, 5], "device": 9}) != scored(request)
    one, three, same = (with_each(tags=[5, 6], tag_scores=weights) for weights in ([1, 1], [1, 3], [2, 6]))
    assert one != three and three == pytest.approx(same, abs=1e-6)  # of a mean, only the shares count
    np.testing.assert_allclose(with_each(tags=[5, 6], tag_scores=[1, 1]), with_each(tags=[5, 6], tag_scores=None), atol=1e-7)
    assert with_each(tags=[5, 6], tag_scores=[0, 0]) == pytest.approx(with_each(tags=[], tag_scores=[]), abs=1e-6)
