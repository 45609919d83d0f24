"""Requests are checked against the schema; what is wrong is said so that a client can put it right."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from request_fuzz import ANYTHING, requests
from serving_requests import plain_requests
from small_run import small_config

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.hashing import ZERO_ID, hash_id
from prectr_torchrec.serving.request import RequestError, RequestSchema

SCHEMA = RequestSchema(small_config().data)
ONE = {"item_id": 1, "title": "red"}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"candidates": []}, "query: got nothing; expected a text"),
        ({"query": "q"}, "candidates: got nothing; expected a list, which may be empty"),
        ({"query": 3, "candidates": []}, "query: got 3 (int); expected a text"),
        ({"query": "q", "candidates": "x"}, "candidates: got 'x' (str); expected a list of objects, or an object of lists"),
        ({"query": "q", "candidates": [3]}, "candidates[0]: got 3 (int); expected an object"),
        (
            {"query": "q", "candidates": [{"title": "x"}]},
            "candidates[0].item_id: got nothing; expected a 64-bit integer or a text, as in the log",
        ),
        (
            {"query": "q", "candidates": [ONE, {"item_id": 1.5}]},
            "candidates[1].item_id: got 1.5 (float); expected a 64-bit integer or a text, as in the log",
        ),
        ({"query": "q", "candidates": [{"item_id": 2**64}]}, "candidates[0].item_id: got 18446744073709551616 (int)"),
        ({"query": "q", "candidates": [{"item_id": True}]}, "candidates[0].item_id: got True (bool)"),
        (
            {"query": "q", "candidates": [{"item_id": 1, "titel": "x"}]},
            "candidates[0].titel: got an unknown field; expected one of the schema (did you mean 'title'?)",
        ),
        ({"query": "q", "candidates": [], "": 1}, "'': got an unknown field; expected one of the schema"),
        ({"query": "q", "candidates": [{"item_id": 1, "title": "\ud800"}]}, "candidates[0].title: got '\\ud800' (str)"),
        (
            {"query": "q", "candidates": [{"item_id": 1, "relevance": 7}]},
            "candidates[0].relevance: got 7 (int); expected null or a grade from 1 to 3",
        ),
        (
            {"query": "q", "candidates": [{"item_id": 1, "shown": float("nan")}]},
            "candidates[0].shown: got nan (float); expected a number from 0 to 1000000000000",
        ),
        (
            {"query": "q", "candidates": [{"item_id": 1, "predicted": [1, 0]}]},
            "candidates[0].predicted: got [1, 0] (list); expected null or 4 probabilities that add up to 1",
        ),
        (
            {"query": "q", "candidates": [{"item_id": 1, "predicted": 0}]},
            "candidates[0].predicted: got 0 (int); expected null or 4 probabilities that add up to 1",
        ),
        (
            {"query": "q", "candidates": {"item_id": [1, 2], "title": ["x"]}},
            "candidates: got lists of 2 item_id, 1 title; expected lists of equal length",
        ),
        ({"query": "q", "candidates": {"title": []}}, "candidates.item_id: got nothing; expected a list, each a 64-bit integer"),
        ({"query": "q", "candidates": [], "user_shown": [0, 0, 0, 0, 1e308]}, "user_shown: got [0, 0, 0, 0, 1e+308] (list)"),
        ({"query": "q", "candidates": {"item_id": [1, "x", None]}}, "candidates.item_id[2]: got nothing"),
        (
            {"query": "q", "candidates": [], "history": [{"item_id": 1, "click": 2}]},
            "history[0].click: got 2 (int); expected 0 or 1",
        ),
        (
            {"query": "q", "candidates": [], "user_shown": [1, 2]},
            "user_shown: got [1, 2] (list); expected 5 numbers from 0 to 1000000000000: without a grade, then by level",
        ),
        (
            {"query": "q", "candidates": [], "user_events": -1},
            "user_events: got -1 (int); expected an integer from 0 to 2147483647",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_is_there_and_what_should_be(request_: Any, message: str) -> None:
    with pytest.raises(RequestError) as error:
        SCHEMA.from_plain([request_], name=None)
    assert str(error.value).startswith(message)


def test_among_many_the_wrong_request_is_named() -> None:
    fine = {"query": "q", "candidates": [ONE, ONE], "peers": [{"item_id": 1}]}
    with pytest.raises(RequestError, match=r"requests\[1\].candidates\[1\].position: got -3"):
        SCHEMA.from_plain([fine, {"query": "q", "candidates": [ONE, {**ONE, "position": -3}]}])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("candidate_relevance", [[1.0], [2.0, 9.0]], r"row 1: candidate_relevance\[1\]: got 9.0 \(float\); expected null or a"),
        ("candidate_shown", [["x"], ["y", "z"]], r"candidate_shown: got a column of list<item: string>"),
        ("user_shown", [[1.0] * 5, [1.0]], "row 1: user_shown: got 1 values; expected 5 numbers"),
        ("query", ["a", None], "query: got 1 nulls; expected string in every row"),
    ],
)
def test_a_wrong_column_of_a_table_is_named(column: str, values: list[Any], message: str) -> None:
    columns = {"query": ["a", "b"], "candidate_item_id": [[1], [2, 3]], column: values}
    with pytest.raises(RequestError, match=message):
        SCHEMA.from_arrow(pa.table(columns))


def test_sums_of_another_number_of_effects_are_named() -> None:
    columns = {"query": ["a", "b"], "candidate_item_id": [[1], [2]], "user_sums": [[0.0] * 5, [0.0] * 3]}
    with pytest.raises(RequestError, match=r"row 1: user_sums: got 3 values; expected 5 numbers from"):
        RequestSchema(DataConfig(effects={"user": 2})).from_arrow(pa.table(columns))


def test_a_table_without_candidates_column_is_refused() -> None:
    with pytest.raises(RequestError, match="candidate_item_id: got no such column; expected a column of list"):
        SCHEMA.from_arrow(pa.table({"query": ["a"]}))


def test_samples_survive_the_way_through_plain_requests(exported: Any) -> None:
    samples = exported.samples.combine_chunks()
    for served in (SCHEMA.from_plain(plain_requests(samples)), SCHEMA.from_arrow(samples)):
        counted = [name for name in samples.column_names if name.endswith("_trained")]
        assert served.drop_columns(counted).equals(samples.drop_columns(counted)) and len(counted) == 6
        lists = [column.to_pylist() for column in served.select(counted)]
        assert not np.concatenate([np.hstack(values) for values in lists]).any()


def test_a_part_of_a_table_is_filled_up_like_the_whole(exported: Any) -> None:
    part = exported.samples.slice(7, 5)
    lacking = part.drop_columns(["candidate_shown", "history_click", *(n for n in part.column_names if n.startswith("peer_"))])
    filled = SCHEMA.from_arrow(lacking)
    assert filled["candidate_item_id"].to_pylist() == part["candidate_item_id"].to_pylist()
    assert filled["candidate_shown"].to_pylist() == [[0.0] * n for n in part["num_candidates"].to_pylist()]
    assert filled["peer_age"].to_pylist() == [[]] * 5


def test_predicted_levels_are_packed_as_in_samples() -> None:
    table = SCHEMA.from_plain([{"query": "q", "candidates": [{"item_id": 1, "predicted": [0.5, 0.5, 0, 0]}]}])
    assert table["candidate_predicted"].to_pylist() == [[64 + 64 * 256]]


def test_the_json_schema_has_every_field_of_the_samples(exported: Any) -> None:
    described = SCHEMA.describe()
    rows = described["properties"]["candidates"]["anyOf"][0]["items"]["properties"]
    served = {n for n in exported.samples.column_names if n != "num_candidates" and not n.endswith("_trained")}
    assert rows.keys() == {n.removeprefix("candidate_") for n in served if n.startswith("candidate_")}
    assert described["required"] == ["query", "candidates"]


@settings(max_examples=300, deadline=None)
@given(requests(SCHEMA.describe()) | ANYTHING)
def test_whatever_comes_is_taken_or_refused_by_name(request_: Any) -> None:
    try:
        table = SCHEMA.from_plain([request_], name=None)
    except RequestError as error:
        refused = error
    else:
        assert table.num_rows == 1 and not np.isnan(table["candidate_shown"].combine_chunks().flatten().to_numpy()).any()
        return
    assert refused.field and str(refused).startswith(refused.field)


def first_ids(schema: RequestSchema, item: Any, user: Any = 0) -> tuple[int, int]:
    """Of a plain request, which an Arrow table of the same ids must agree with."""
    row = schema.from_plain([{"query": "q", "user_id": user, "candidates": [{"item_id": item}]}])
    table = pa.table({"query": ["q"], "user_id": [user], "candidate_item_id": [[item]]})
    assert schema.from_arrow(table).select(["user_id", "candidate_item_id"]) == row.select(["user_id", "candidate_item_id"])
    return row["candidate_item_id"][0].as_py()[0], row["user_id"][0].as_py()


def test_ids_are_read_as_the_log_writes_them() -> None:
    data = small_config().data
    texts, integers = (RequestSchema(data, {"item_id": kind, "user_id": kind}) for kind in ("text", "integer"))
    assert first_ids(texts, "7", "b") == (hash_id("7"), hash_id("b"))
    assert first_ids(integers, "7", "-3") == first_ids(integers, 7, -3) == (7, -3)
    assert first_ids(SCHEMA, "7") == (hash_id("7"), 0)
    assert texts.from_plain([{"query": "q", "user_id": 0, "candidates": []}])["user_id"].to_pylist() == [0]
    for schema, wrong, says in (
        (texts, 7, "got 7 (int); expected a text, as in the log"),
        (integers, "b", "got 'b' (str); expected a 64-bit integer, as in the log"),
    ):
        with pytest.raises(RequestError, match=re.escape(f"candidates[0].item_id: {says}")):
            schema.from_plain([{"query": "q", "candidates": [{"item_id": wrong}]}])
    with pytest.raises(RequestError, match=re.escape("candidate_item_id, value 1: got 'b' (str)")):
        integers.from_arrow(pa.table({"query": ["q"], "candidate_item_id": [["7", "b"]]}))


def test_ids_of_sixty_four_bits_are_those_that_prepare_takes() -> None:
    row = SCHEMA.from_plain([{"query": "q", "user_id": 2**64 - 1, "candidates": [{"item_id": 2**63 + 5}]}])
    users, items = pa.array([2**64 - 1], pa.uint64()), pa.array([[2**63 + 5]], pa.list_(pa.uint64()))
    table = SCHEMA.from_arrow(pa.table({"query": ["q"], "user_id": users, "candidate_item_id": items}))
    for found in (row, table):
        assert found.select(["user_id", "candidate_item_id"]).to_pylist() == [
            {"user_id": -1, "candidate_item_id": [-(2**63) + 5]}
        ]


def test_an_unknown_column_of_a_list_is_named() -> None:
    with pytest.raises(RequestError, match=r"candidate_titel: got an unknown column; .*did you mean 'candidate_title'"):
        SCHEMA.from_arrow(pa.table({"candidate_titel": [["x"]], "query": ["q"], "candidate_item_id": [[1]]}))


@pytest.mark.parametrize(("kind", "zero"), [("integer", 0), ("unsigned", 0), ("text", "0"), ("either", 0), ("either", "0")])
@pytest.mark.parametrize("zero_id", ["none", "id"])
def test_zero_is_what_the_log_says_and_null_is_none(kind: str, zero: Any, zero_id: Any) -> None:
    names = ("user_id", "query_id", "item_id", "category_id")
    schema = RequestSchema(DataConfig(zero_id=zero_id), {name: kind for name in names if kind != "either"})
    other = "7" if kind == "text" else 7
    requests = [
        {"user_id": user, "query": "red", "candidates": [{"item_id": zero, "category_id": c} for c in (zero, None, other)]}
        for user in (zero, None)
    ]
    found, mine = schema.from_plain(requests).to_pylist(), 0 if zero_id == "none" else ZERO_ID
    assert [row["user_id"] for row in found] == [mine, 0] and found[0]["query_id"] == 0
    assert found[0]["candidate_item_id"] == [mine] * 3
    assert found[0]["candidate_category_id"] == [mine, 0, 7 if kind != "text" else hash_id("7")]
    if kind in ("text", "either"):
        assert schema.from_plain([{**requests[0], "user_id": ""}]).to_pylist()[0]["user_id"] == 0
    alike = schema.from_plain([{**requests[0], "candidates": [{"item_id": zero}] * 2, "request_id": 0}]).to_pylist()[0]
    assert alike["candidate_item_id"] == [mine] * 2 and alike["candidate_category_id"] == [0, 0] and alike["request_id"] == 0


def test_null_is_none_in_columns_of_ids_too() -> None:
    schema = RequestSchema(DataConfig())
    columns = {"query": ["red"], "user_id": pa.array([None], pa.int64()), "candidate_item_id": [[5, 6]]}
    row = schema.from_arrow(pa.table({**columns, "candidate_category_id": [[None, "lamp"]]})).to_pylist()[0]
    assert row["user_id"] == 0 and row["candidate_category_id"] == [0, hash_id("lamp")]
    row = schema.from_arrow(pa.table({**columns, "candidate_category_id": [[None, 3]], "user_id": pa.nulls(1)})).to_pylist()[0]
    assert row["user_id"] == 0 and row["candidate_category_id"] == [0, 3]
    with pytest.raises(RequestError, match=r"candidate_item_id: got 1 nulls"):
        schema.from_arrow(pa.table({"query": ["red"], "candidate_item_id": [[5, None]]}))
