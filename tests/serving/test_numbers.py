"""Numbers of a log in requests: raw, optional, and named where they are wrong."""

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
NUMBERS = ("user_age", "query_length", "hour", "candidate_price", "candidate_bm25")


def request_with(**values: Any) -> dict[str, Any]:
    """A request of one candidate, which has those of the values that are its own."""
    candidate = {"item_id": 1, **{name: values.pop(name) for name in ("price", "bm25") if name in values}}
    return {"query": "q", "candidates": [candidate], **values}


def test_a_number_comes_as_the_log_has_it() -> None:
    row = SCHEMA.from_plain([request_with(user_age=31, query_length=2.5, hour=0, price=10**6, bm25=-7.25)]).to_pylist()[0]
    assert [row[name] for name in NUMBERS] == [31.0, 2.5, 0.0, [1e6], [-7.25]]


def test_missing_numbers_are_normal() -> None:
    nothing = SCHEMA.from_plain([request_with()])
    assert [nothing[name].to_pylist()[0] for name in NUMBERS] == [None, None, None, [None], [None]]
    for missing in (None, math.nan):
        told = request_with(**dict.fromkeys(("user_age", "query_length", "hour", "price", "bm25"), missing))
        assert SCHEMA.from_plain([told]).equals(nothing)
    some = {"item_id": [1, 2, 3], "price": [None, 2, math.nan]}
    assert SCHEMA.from_plain([{"query": "q", "candidates": some}])["candidate_price"].to_pylist() == [[None, 2.0, None]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"price": "12"}, "candidates[0].price: got '12' (str); expected a number from 0 to 1e+30, or null"),
        ({"price": -1}, "candidates[0].price: got -1 (int); expected a number from 0 to 1e+30, or null"),
        ({"bm25": math.inf}, "candidates[0].bm25: got inf (float); expected a number from -1e+30 to 1e+30, or null"),
        ({"hour": True}, "hour: got True (bool); expected a number"),
        ({"user_age": 10**400}, "user_age: got 1000"),
        ({"prices": 1}, "prices: got an unknown field"),
    ],
)
def test_a_wrong_number_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        SCHEMA.from_plain([request_with(**values)], name=None)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("hour", [1.0, math.inf], "row 1: hour: got inf (float); expected a number"),
        ("candidate_price", [[1.0], [2.0, -3.0]], "row 1: candidate_price[1]: got -3.0 (float); expected a number from 0"),
        ("candidate_bm25", [["x"], ["y", "z"]], "candidate_bm25: got a column of list<item: string>"),
    ],
)
def test_a_wrong_number_in_a_table_is_named(column: str, values: list[Any], message: str) -> None:
    columns = {"query": ["a", "b"], "candidate_item_id": [[1], [2, 3]], column: values}
    with pytest.raises(RequestError, match="^" + re.escape(message)):
        SCHEMA.from_arrow(pa.table(columns))


def test_a_table_may_have_missing_numbers() -> None:
    columns = {"query": ["a", "b"], "candidate_item_id": [[1], [2, 3]]}
    table = pa.table({**columns, "hour": [None, 5.0], "candidate_price": [[math.nan], [None, 2.0]]})
    taken = SCHEMA.from_arrow(table)
    assert taken["hour"].to_pylist() == [None, 5.0] and taken["candidate_price"].to_pylist()[1] == [None, 2.0]
    assert SCHEMA.from_arrow(pa.table(columns))["hour"].to_pylist() == [None, None]


def test_a_ranker_scores_by_raw_numbers_and_without_them(exported: Any, ranker: Ranker) -> None:
    sample = exported.samples.slice(0, 1)
    (request,) = plain_requests(sample)
    of_table = ranker.score(sample)["click_probability"].to_pylist()

    def scored(changed: dict[str, Any]) -> list[float]:
        found = ranker.score(changed)
        return [float(p) for p in found.click_probability]

    assert scored(request) == pytest.approx(of_table, abs=1e-6)
    beyond = {**request, "candidates": [{**candidate, "price": 1e12} for candidate in request["candidates"]]}
    farther = {**request, "candidates": [{**candidate, "price": 1e29} for candidate in request["candidates"]]}
    assert scored(beyond) == scored(farther) != scored(request)
    without = {
        **request,
        "candidates": [{k: v for k, v in c.items() if k not in ("price", "bm25")} for c in request["candidates"]],
    }
    missing = {**request, "candidates": [{**c, "price": None, "bm25": math.nan} for c in request["candidates"]]}
    assert scored(without) == scored(missing) != scored(request)
