"""A log without ids of queries: their texts are they, whatever the case and the blanks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared_logs import SMALL, labelled_rows, run
from raw_logs import Raw, random_log, read_split

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.hashing import hash_id, normalised, normalised_sql
from prectr_torchrec.data.log_ids import LogIds
from prectr_torchrec.data.raw.source import RawLogError, open_duckdb
from prectr_torchrec.serving.request import RequestSchema

DATA: dict[str, Any] = {**SMALL, "raw": {"queries": None}}


def log_of_texts() -> Raw:
    """Each query in several spellings."""
    raw = random_log(3)
    texts = {row["query_id"]: row["query"] for row in raw.pop("queries")}
    for row in raw["impressions"]:
        text = texts[row.pop("query_id")]
        row["query"] = (text, text.upper(), f" {text.replace(' ', '   ')}")[row["request_id"] % 3]
    for row in raw["judgments"]:
        row["query"] = texts[row.pop("query_id")].title()
    return raw


def test_spellings_are_one_query_with_one_past_and_its_grades(tmp_path: Path) -> None:
    for name in ("texts", "ids"):
        (tmp_path / name).mkdir()
    manifest = run(log_of_texts(), tmp_path / "texts", DataConfig.model_validate(DATA))
    run(random_log(3), tmp_path / "ids", DataConfig.model_validate(SMALL))
    assert manifest["id_kinds"]["query_id"] == "normalised"
    same = ("query_events", "query_shown", "candidate_relevance", "peer_item_id")
    found, expected = (
        {row["request_id"]: [row[n] for n in same] for row in labelled_rows(tmp_path / n)} for n in ("texts", "ids")
    )
    assert str(found) == str(expected)
    for row in labelled_rows(tmp_path / "texts"):
        assert row["query_id"] == hash_id(normalised(row["query"]))
    assert len(read_split(tmp_path / "texts" / "out", "judgments")) == len(read_split(tmp_path / "ids" / "out", "judgments"))


def test_ids_come_out_as_normalised_texts_and_any_spelling_goes_in(tmp_path: Path) -> None:
    run(log_of_texts(), tmp_path, DataConfig.model_validate(DATA))
    row = labelled_rows(tmp_path)[0]
    ids = LogIds.of_split(tmp_path / "out" / "train")
    (text,) = ids.restore("query_id", [row["query_id"]]).values()
    assert text == normalised(row["query"])
    assert ids.parse("query_id", f" {text.upper()}") == row["query_id"]


def test_a_request_without_an_id_has_that_of_its_query() -> None:
    schema = RequestSchema(DataConfig.model_validate(DATA), {"query_id": "normalised"})
    requests = [{"query": "Oak  Shelf", "candidates": [{"item_id": 1, "title": "t"}]}]
    requests += [{**requests[0], "query_id": "lamp"}, {**requests[0], "query": " "}]
    found = schema.from_plain(requests)
    assert found["query_id"].to_pylist() == [hash_id("oak shelf"), hash_id("lamp"), 0]
    assert schema.from_arrow(found.drop_columns("query_id"))["query_id"].to_pylist() == [hash_id("oak shelf")] * 2 + [0]


def test_a_log_without_texts_is_told_the_column(tmp_path: Path) -> None:
    raw = log_of_texts()
    for row in raw["impressions"]:
        del row["query"]
    with pytest.raises(RawLogError, match=r"impressions.parquet: column 'query' is missing"):
        run(raw, tmp_path, DataConfig.model_validate(DATA))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_spellings_that_are_graded_otherwise_have_the_mean_of_their_grades(tmp_path: Path, suffix: str) -> None:
    raw = log_of_texts()
    files = {name: {"path": f"{name}.{suffix}"} for name in raw}
    data = DataConfig.model_validate({**DATA, "raw": {**files, "queries": None}})
    first, second = raw["judgments"][0], raw["judgments"][1]
    others = [{**first, "query": first["query"].upper(), "relevance": grade} for grade in (1.0,)]
    others += [{**first, "query": f"  {first['query']}", "relevance": 2.0}, {**second, "query": second["query"].lower()}]
    raw["judgments"][0] = first = {**first, "relevance": 3.0}
    plain = run(log_of_texts(), tmp_path / "plain", data, suffix=suffix)
    manifest = run(raw | {"judgments": raw["judgments"] + others}, tmp_path / "more", data, suffix=suffix)
    assert manifest["mended"]["judgments that grade other spellings of a query otherwise, of which the mean counts"] == 2
    assert manifest["dropped"]["judgments given twice"] == 1 and "judgments given twice" not in plain["dropped"]
    query, item = hash_id(normalised(first["query"])), first["item_id"]
    grades = {
        (row["query_id"], item): grade
        for row in labelled_rows(tmp_path / "more") + read_split(tmp_path / "more" / "out", "judgments")
        for item, grade in zip(row["candidate_item_id"], row["candidate_relevance"], strict=True)
    }
    assert grades[query, item] == 2.0


def test_one_spelling_that_is_graded_twice_is_an_error(tmp_path: Path) -> None:
    raw = log_of_texts()
    first = raw["judgments"][0]
    raw["judgments"] += [{**first, "query": first["query"].upper(), "relevance": 1.0}, {**first, "relevance": 1.5}]
    raw["judgments"][0] = {**first, "relevance": 3.0}
    expected = (
        rf"judgments\.parquet: rows 1 and {len(raw['judgments'])} grade the same \(query_id, item_id\) with 3.0 and 1.5; a pair"
    )
    with pytest.raises(RawLogError, match=expected):
        run(raw, tmp_path, DataConfig.model_validate(DATA))


def test_columns_of_queries_need_a_file_of_queries() -> None:
    with pytest.raises(ValueError, match=r"columns.queries.words: raw.queries is null, and no other file has it"):
        DataConfig.model_validate({**DATA, "columns": {"queries": {"words": "number"}}})


@given(st.text(max_size=30))
def test_texts_are_normalised_in_python_as_in_sql(text: str) -> None:
    text = text.replace("\0", "")
    with open_duckdb() as con:
        assert con.execute(f"SELECT {normalised_sql('?')}", [text]).fetchall() == [(normalised(text),)]
