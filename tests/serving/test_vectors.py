"""Vectors of a log in requests: raw, optional, and named where they are wrong."""

from __future__ import annotations

import math
import re
from typing import Any

import pyarrow as pa
import pytest
from serving_requests import plain_requests
from small_run import small_config

from prectr_torchrec import Ranker
from prectr_torchrec.serving.request import RequestError, RequestSchema

SCHEMA = RequestSchema(small_config().data)


def request_with(**values: Any) -> dict[str, Any]:
    """A request of one candidate, which has the `view` among the values."""
    candidate = {"item_id": 1, **{name: values.pop(name) for name in ("view",) if name in values}}
    return {"query": "q", "candidates": [candidate], **values}


def test_a_vector_comes_as_the_log_has_it() -> None:
    row = SCHEMA.from_plain([request_with(user_profile=[1, 2.5, -3], view=(0, 1, 2), query_intent=[0, 0])]).to_pylist()[0]
    assert row["user_profile"] == [1.0, 2.5, -3.0] and row["candidate_view"] == [[0.0, 1.0, 2.0]]
    assert row["query_intent"] == [0.0, 0.0] and row["context"] is None


def test_missing_vectors_are_normal() -> None:
    nothing = SCHEMA.from_plain([request_with()])
    told = SCHEMA.from_plain([request_with(user_profile=None, view=None, query_intent=None, context=None)])
    assert told.equals(nothing) and nothing["candidate_view"].to_pylist() == [[None]]
    some = {"item_id": [1, 2], "view": [None, [1, 2, 3]]}
    assert SCHEMA.from_plain([{"query": "q", "candidates": some}])["candidate_view"].to_pylist() == [[None, [1.0, 2.0, 3.0]]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"user_profile": [1, 2]}, "user_profile: got [1, 2] (list); expected null or 3 numbers from -1e+30 to 1e+30"),
        ({"user_profile": [0] * 31}, "user_profile: got [0, 0, 0, 0, 0, 0, ...] (list of 31); expected null or 3 numbers"),
        ({"view": [1, "2", 3]}, "candidates[0].view: got [1, '2', 3] (list); expected null or 3 numbers"),
        ({"view": [1, math.nan, 3]}, "candidates[0].view: got [1, nan, 3] (list); expected null or 3 numbers"),
        ({"view": [1, None, 3]}, "candidates[0].view: got [1, None, 3] (list); expected"),
        ({"query_intent": [math.inf, 0]}, "query_intent: got [inf, 0] (list); expected null or 2 numbers"),
        ({"context": 7}, "context: got 7 (int); expected null or 5 numbers"),
        ({"context": "12345"}, "context: got '12345' (str); expected null or 5 numbers"),
    ],
)
def test_a_wrong_vector_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        SCHEMA.from_plain([request_with(**values)], name=None)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("query_intent", [[1.0, 2.0], [3.0]], "row 1: query_intent: got 1 numbers; expected null or 2 numbers"),
        ("query_intent", [[1.0, 2.0], [3.0, math.nan]], "row 1: query_intent: got [3.0, nan] (list); expected null or 2"),
        ("query_intent", ["a", "b"], "query_intent: got a column of string"),
        ("candidate_view", [[None], [None, [1.0, 2.0]]], "row 1: candidate_view[1]: got 2 numbers; expected null or 3"),
        ("candidate_view", [[[1.0, 2.0, math.inf]], [None, None]], "row 0: candidate_view[0]: got [1.0, 2.0, inf] (list)"),
    ],
)
def test_a_wrong_vector_in_a_table_is_named(column: str, values: list[Any], message: str) -> None:
    columns = {"query": ["a", "b"], "candidate_item_id": [[1], [2, 3]], column: values}
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        SCHEMA.from_arrow(pa.table(columns))


def test_a_table_may_have_missing_vectors() -> None:
    columns = {"query": ["a", "b"], "candidate_item_id": [[1], [2, 3]]}
    table = pa.table({**columns, "query_intent": [None, [5.0, 6.0]], "candidate_view": [[None], [None, [1.0, 2.0, 3.0]]]})
    taken = SCHEMA.from_arrow(table)
    assert taken["query_intent"].to_pylist() == [None, [5.0, 6.0]]
    assert taken["candidate_view"].to_pylist() == [[None], [None, [1.0, 2.0, 3.0]]]
    assert SCHEMA.from_arrow(pa.table(columns))["query_intent"].to_pylist() == [None, None]


def test_the_schema_of_a_request_tells_the_width() -> None:
    described = SCHEMA.describe()["properties"]["user_profile"]
    assert described["type"] == ["array", "null"] and described["minItems"] == described["maxItems"] == 3


def test_a_ranker_scores_by_vectors_and_without_them(exported: Any, ranker: Ranker) -> None:
    sample = exported.samples.slice(0, 1)
    (request,) = plain_requests(sample)
    of_table = ranker.score(sample)["click_probability"].to_pylist()

    def scored(changed: dict[str, Any]) -> list[float]:
        return [float(p) for p in ranker.score(changed).click_probability]

    assert scored(request) == pytest.approx(of_table, abs=1e-6)
    without = {name: value for name, value in request.items() if name not in ("user_profile", "query_intent", "context")}
    missing = {**request, **dict.fromkeys(("user_profile", "query_intent", "context"))}
    assert scored(without) == scored(missing) != scored(request)
    viewed = {**request, "candidates": [{**candidate, "view": [9.0, -9.0, 9.0]} for candidate in request["candidates"]]}
    assert scored(viewed) != scored(request)
