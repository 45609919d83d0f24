"""What a log means by null and 0, positions counted from 0, and texts that differ in case and blanks alone."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_logs import Raw, random_log, read_split, reference_rows, write_log, write_table

from prectr_torchrec.config.data import DataConfig, RawLog, RawTable, Split
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.hashing import ZERO_ID, hash_id
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.raw.source import RawLogError
from prectr_torchrec.serving.counters import PreferenceStatistics
from prectr_torchrec.serving.request import RequestSchema

LABELLED = ("train", "validation", "test")
SMALL: dict[str, Any] = {
    "history_length": 4,
    "peer_length": 5,
    "peer_minimum": 3,
    "split": Split(validation_from=20, test_from=30),
    "examination": [1.0, 0.75, 0.375],
}
CSV = RawLog(**{name: RawTable(path=f"{name}.csv") for name in ("impressions", "items", "queries", "judgments")}, users=None)


def run(raw: Raw, folder: Path, *, suffix: str = "parquet", candidates: Path | None = None, **settings: Any) -> dict[str, Any]:
    data = DataConfig(**SMALL | settings, raw=CSV if suffix == "csv" else RawLog())
    log = write_log(raw, folder / "raw", suffix=suffix)
    return prepare(data, TextConfig(vocab_size=300), log, folder / "out", candidates=candidates, progress=False)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for split in LABELLED for row in read_split(folder / "out", split)]


def renamed(raw: Raw, column: str, names: dict[Any, Any]) -> Raw:
    """The log with some ids of a column written otherwise, in every table."""
    return {
        table: [row | {column: names.get(row[column], row[column])} if column in row else row for row in found]
        for table, found in raw.items()
    }


@pytest.mark.parametrize(("nobody", "text_ids"), [(0, False), (None, False), (None, True), ("0", True), ("", True)])
def test_nobody_has_no_past_and_is_everybodys_other(tmp_path: Path, nobody: Any, text_ids: bool) -> None:
    raw = random_log(1, text_ids=text_ids)
    names = {u: nobody for u in sorted({e["user_id"] for e in raw["impressions"]})[:2]}
    raw = renamed(raw, "user_id", names)
    manifest = run(raw, tmp_path)
    expected = reference_rows(renamed(raw, "user_id", {nobody: 0}), DataConfig(**SMALL))
    assert rows(tmp_path) == expected
    strangers = [row for row in expected if row["user_id"] == 0]
    assert strangers and all(not row["user_events"] and not row["history_item_id"] for row in strangers)
    assert any(row["peer_item_id"] for row in strangers)
    assert manifest["counts"]["users"] == 2
    written = sum(event["user_id"] == nobody for event in raw["impressions"]) if nobody in (0, "0") else 0
    assert manifest["zeros"].get("impressions.user_id", 0) == written


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_zero_is_an_id_where_the_setting_says_so(tmp_path: Path, suffix: str) -> None:
    raw = random_log(1)
    user, item, query = (
        raw[table][0][column] for table, column in (("impressions", "user_id"), ("items", "item_id"), ("queries", "query_id"))
    )
    for column, value in (("user_id", user), ("item_id", item), ("query_id", query)):
        raw = renamed(raw, column, {value: 0})
    manifest = run(raw, tmp_path, suffix=suffix, zero_id="id", query_group=None)
    assert manifest["zeros"] == {}
    found = rows(tmp_path)
    assert hash_id("0") == ZERO_ID and 0 not in {row["user_id"] for row in found} | {row["query_id"] for row in found}
    assert any(row["user_id"] == ZERO_ID and row["history_item_id"] for row in found)
    assert {ZERO_ID} == {i for row in found for i in row["candidate_item_id"]} & {0, ZERO_ID}
    assert {ZERO_ID, 0} <= {value for row in found for value in row["candidate_category_id"] + row["candidate_brand_id"]}


def test_an_item_and_a_query_of_id_zero_stay_and_are_told(tmp_path: Path) -> None:
    raw = random_log(1)
    for table, column in (("items", "item_id"), ("queries", "query_id")):
        raw = renamed(raw, column, {raw[table][0][column]: 0})
    manifest = run(raw, tmp_path)
    assert manifest["zeros"] | {"items.item_id": 1, "queries.query_id": 1} == manifest["zeros"]
    assert rows(tmp_path) == reference_rows(raw, DataConfig(**SMALL))


def test_rows_without_an_id_are_dropped_and_counted(tmp_path: Path) -> None:
    raw = random_log(1)
    raw["impressions"] += [raw["impressions"][0] | {name: None} for name in ("request_id", "item_id", "query_id")]
    raw["items"].append({"item_id": None, "title": "x", "category_id": 1, "brand_id": 1})
    raw["queries"].append({"query_id": None, "query": "x"})
    raw["judgments"].append({"query_id": None, "item_id": raw["items"][0]["item_id"], "relevance": 1.0})
    raw["users"] = [{"user_id": user, "user_city": 5} for user in (None, 0, raw["impressions"][0]["user_id"])]
    data = DataConfig(**SMALL, user_attributes=["user_city"])
    prepared = prepare(data, TextConfig(vocab_size=300), write_log(raw, tmp_path / "raw"), tmp_path / "out", progress=False)
    assert prepared["dropped"] == {
        "items without item_id": 1,
        "queries without query_id": 1,
        "users without user_id": 2,
        "judgments without a query or item": 1,
        "impressions without request_id": 1,
        "impressions without query_id": 1,
        "impressions without item_id": 1,
    }
    assert {row["user_city"] for row in rows(tmp_path)} == {0, 5}


def test_counters_kept_event_by_event_know_nobody() -> None:
    statistics = PreferenceStatistics(2, [1.0])
    for user in (0, 7):
        statistics.add(user, 3, 0, 5, level=1, position=1, click=1)
    assert statistics.look_up(0, 3, 0)["user_shown"].sum() == 0 and statistics.look_up(0, 3, 0)["query_shown"].sum() == 2
    assert statistics.look_up(7, 3, 0)["user_shown"].sum() == 1 and statistics.look_up(7, 3, 0)["query_shown"].sum() == 1


def test_a_grade_wins_over_a_prediction_of_the_same_event() -> None:
    statistics = PreferenceStatistics(2, [1.0])
    statistics.add(7, 3, 0, 5, level=2, position=1, click=0, predicted=int.from_bytes([128, 0], "little"))
    assert statistics.look_up(7, 3, 0)["user_shown"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_positions_from_zero_are_found_out_and_raised(tmp_path: Path, suffix: str) -> None:
    raw = random_log(1)
    expected = reference_rows(raw, DataConfig(**SMALL))
    for event in raw["impressions"]:
        event["position"] -= 1
    assert run(raw, tmp_path, suffix=suffix)["positions_from"] == 0
    assert rows(tmp_path) == expected


def test_positions_are_taken_as_the_setting_says(tmp_path: Path) -> None:
    raw = random_log(1)
    for event in raw["impressions"]:
        event["position"] -= 1
    assert run(raw, tmp_path / "one", positions_from=1)["positions_from"] == 1
    assert {p for row in rows(tmp_path / "one") for p in row["candidate_position"]} == {0, 1, 2, 3}
    raw["impressions"] = [event for event in raw["impressions"] if event["position"]]
    for event in raw["impressions"][:1]:
        event["position"] = None
    run(raw, tmp_path / "zero", positions_from=0)
    assert {p for row in rows(tmp_path / "zero") for p in row["candidate_position"]} == {0, 2, 3, 4}


@pytest.mark.parametrize("missing", [0.3, 1.0])
def test_positions_that_are_not_logged_are_not_raised(tmp_path: Path, missing: float) -> None:
    raw, rng = random_log(1), np.random.default_rng(0)
    for event in raw["impressions"]:
        event["position"] = 0 if rng.random() < missing else event["position"]
    assert run(raw, tmp_path)["positions_from"] == 1


def test_queries_of_one_text_share_their_grades(tmp_path: Path) -> None:
    raw = random_log(1)
    twin, graded = raw["queries"][0], raw["queries"][1]
    twin["query"] = "  Query   1 "
    raw["judgments"] = [row for row in raw["judgments"] if row["query_id"] != twin["query_id"]]
    manifest = run(raw, tmp_path)
    own = {row["item_id"]: row["relevance"] for row in raw["judgments"] if row["query_id"] == graded["query_id"]}
    assert manifest["mended"] == {"pairs graded as their query is elsewhere, in other case or blanks": len(own)}
    found = [row for row in rows(tmp_path) if row["query_id"] == twin["query_id"]]
    grades = {i: g for row in found for i, g in zip(row["candidate_item_id"], row["candidate_relevance"], strict=True)}
    (group,) = {row["group_id"] for row in rows(tmp_path) if row["query_id"] == graded["query_id"]}
    assert found and group and {row["group_id"] for row in found} == {group}
    assert grades == {item: pytest.approx(own[item]) if item in own else None for item in grades}
    assert len(read_split(tmp_path / "out", "judgments")) == len({row["query_id"] for row in raw["judgments"]})


def test_ids_of_text_are_matched_where_case_or_blanks_alone_differ(tmp_path: Path) -> None:
    plain = random_log(1, text_ids=True)
    raw = {table: [dict(row) for row in found] for table, found in plain.items()}
    for table in ("impressions", "judgments"):
        for row in raw[table][::2]:
            row["query_id"] = f" {row['query_id'].upper()}"
    for request in {row["request_id"] for row in raw["impressions"][::2]}:
        of_request = [row for row in raw["impressions"] if row["request_id"] == request]
        for row in of_request:
            row["query_id"] = of_request[0]["query_id"]
    manifest = run(raw, tmp_path)
    assert "impressions whose query_id differs from that of queries in case or blanks" in manifest["mended"]
    assert not any("unknown" in what for what in manifest["dropped"])
    assert rows(tmp_path) == reference_rows(plain, DataConfig(**SMALL))


def test_an_unknown_id_of_text_is_shown_as_the_file_has_it(tmp_path: Path) -> None:
    raw = random_log(1, text_ids=True)
    for event in raw["impressions"]:
        event["item_id"] = f"x{event['item_id']}"
    with pytest.raises(RawLogError, match=r"rows have a item_id that is not in items.\w+ \(such as 'xitem\d+'\)"):
        run(raw, tmp_path)


def test_candidates_without_an_item_are_dropped_and_counted(tmp_path: Path) -> None:
    raw = random_log(1)
    write_table([{"request_id": 1, "item_id": item} for item in (None, 4001)], tmp_path / "wanted.parquet")
    manifest = run(raw, tmp_path, candidates=tmp_path / "wanted.parquet")
    assert manifest["dropped"]["candidates without item_id"] == 1


def test_a_column_without_whole_numbers_is_no_mixture(tmp_path: Path) -> None:
    raw = random_log(1, text_ids=True)
    for event in raw["impressions"]:
        event["user_id"] = f"u{event['request_id']}" if event["request_id"] % 9 == 0 else None
    assert run(raw, tmp_path, suffix="csv")["mixed_ids"] == {}


@pytest.mark.parametrize("written", [lambda value: float(value) or -0.0, lambda value: Decimal(value).quantize(Decimal("0.01"))])
def test_zeros_are_counted_however_a_file_writes_them(tmp_path: Path, written: Any) -> None:
    raw = random_log(1)
    for event in raw["impressions"]:
        event["user_id"] = written(event["user_id"] if event["request_id"] % 4 else 0)
    assert run(raw, tmp_path)["zeros"]["impressions.user_id"] == sum(event["user_id"] == 0 for event in raw["impressions"])


@pytest.mark.parametrize("zero_id", ["none", "id"])
@pytest.mark.parametrize("text_ids", [False, True])
def test_a_served_request_with_the_ids_of_the_log_is_the_row_of_the_samples(tmp_path: Path, text_ids: bool, zero_id: Any) -> None:
    raw = random_log(1, text_ids=text_ids)
    zero: Any = "0" if text_ids else 0
    for column, table in (("user_id", "impressions"), ("item_id", "items"), ("query_id", "queries")):
        raw = renamed(raw, column, {raw[table][0][column]: zero})
    manifest = run(raw, tmp_path, zero_id=zero_id)
    schema = RequestSchema(DataConfig(**SMALL | {"zero_id": zero_id}), manifest["id_kinds"])
    items = {row["item_id"]: row for row in raw["items"]}
    by_request = {row["request_id"]: row for row in rows(tmp_path)}
    for request_id, row in by_request.items():
        shown = sorted((e for e in raw["impressions"] if e["request_id"] == request_id), key=lambda e: e["position"])
        candidates = [{name: items[e["item_id"]][name] for name in ("item_id", "category_id", "brand_id")} for e in shown]
        sent = {name: shown[0][name] for name in ("user_id", "query_id")} | {"query": row["query"], "candidates": candidates}
        served = schema.from_plain([sent]).to_pylist()[0]
        names = ("user_id", "query_id", "candidate_item_id", "candidate_category_id", "candidate_brand_id")
        assert [served[name] for name in names] == [row[name] for name in names]
        assert row["user_id"] or not (row["user_events"] or row["history_item_id"])
    assert (0 in {row["user_id"] for row in by_request.values()}) == (zero_id == "none")
