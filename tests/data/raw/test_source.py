"""Every kind of bad input is refused with the file, the column and the row, or dropped and counted."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import Raw, random_log, read_split, write_log, write_table

from prectr_torchrec.config.data import DataConfig, RawLog, RawTable
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.hashing import hash_id
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.raw.source import RawLogError

TEXT = TextConfig(vocab_size=300)


def load(raw: Raw, folder: Path, suffix: str = "parquet", **settings: Any) -> dict[str, Any]:
    if suffix == "csv":
        settings["raw"] = RawLog(**{name: RawTable(path=f"{name}.csv") for name in raw})
    return prepare(DataConfig(**settings), TEXT, write_log(raw, folder / "raw", suffix=suffix), folder / "out", progress=False)


def setting(table: str, row: int, **values: Any) -> Callable[[Raw], None]:
    """Overwrites values of the 1-based row of a table."""
    return lambda raw: raw[table][row - 1].update(values)


def setting_all(table: str, column: str, convert: Callable[[Any], Any]) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        for row in raw[table]:
            row[column] = convert(row[column])

    return change


def dropping(table: str, column: str) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        for row in raw[table]:
            del row[column]

    return change


BAD: dict[str, tuple[Callable[[Raw], Any], str]] = {
    "missing column": (
        dropping("impressions", "click"),
        r"impressions.parquet: column 'click' is missing.*columns there: request_id, .*data.raw.impressions.columns: \{click:",
    ),
    "missing attribute": (dropping("items", "brand_id"), r"items.parquet: column 'brand_id' is missing"),
    "text clicks": (
        setting_all("impressions", "click", lambda c: "yes" if c else "0"),
        r"impressions.parquet: column 'click', row \d+: 'yes'; expected 0 or 1 \(\d+ more such rows\)",
    ),
    "dates before 1970": (
        setting_all("impressions", "timestamp", lambda t: datetime.datetime(1969, 12, 31, 23, 59, 59, t % 2)),
        r"impressions.parquet: column 'timestamp', row 1: datetime.*; expected seconds, .*or a timestamp, or text such as 2026",
    ),
    "a fraction before 0": (
        setting("impressions", 7, timestamp=-0.5),
        r"column 'timestamp', row 7: -0.5; expected seconds, not negative",
    ),
    "float ids": (
        setting("impressions", 5, user_id=2.0**53),
        r"column 'user_id', row 5: 9007199254740992.0; expected an id.* \(of floats: a whole number below 2\*\*53",
    ),
    "numbers for titles": (setting_all("items", "title", len), r"items.parquet: column 'title' is BIGINT; expected text"),
    "text grades": (
        setting_all("judgments", "relevance", lambda g: "good"),
        r"column 'relevance', row 1: 'good'; expected a grade in 1.0..3.0",
    ),
    "click of two": (setting("impressions", 5, click=2), r"impressions.parquet: column 'click', row 5: 2; expected 0 or 1$"),
    "null click": (setting("impressions", 6, click=None), r"column 'click', row 6: None; expected 0 or 1"),
    "negative time": (
        setting("impressions", 7, timestamp=-3),
        r"column 'timestamp', row 7: -3; expected seconds, not negative",
    ),
    "negative position": (
        setting("impressions", 8, position=-1),
        r"column 'position', row 8: -1; expected a position in 1..32767",
    ),
    "a user in some rows of a request": (
        setting("impressions", 9, user_id=None),
        r"rows 9 and 7 belong to one request, \d+, but differ in 'user_id': None and \d+",
    ),
    "mostly null requests": (
        setting_all("impressions", "request_id", lambda r: r if r < 50 else None),
        r"impressions.parquet: column 'request_id', row \d+: None; expected an id, which \d+ of \d+ rows lack",
    ),
    "grade too high": (
        setting("judgments", 4, relevance=3.5),
        r"judgments.parquet: column 'relevance', row 4: 3.5; expected a grade in 1.0..3.0 ",
    ),
    "NaN grade": (
        setting("judgments", 4, relevance=float("nan")),
        r"judgments.parquet: column 'relevance', row 4: nan; expected a grade",
    ),
    "item twice": (
        lambda raw: raw["items"].append(raw["items"][2]),
        r"items.parquet: rows 3 and 21 have the same \(item_id\) = \(4002\)",
    ),
    "query twice": (
        lambda raw: raw["queries"].append(raw["queries"][0]),
        r"queries.parquet: rows 1 and 7 have the same \(query_id\) = \(5000\)",
    ),
    "candidate twice": (
        lambda raw: raw["impressions"].insert(9, dict(raw["impressions"][0])),
        r"impressions.parquet: rows 1 and 10 have the same \(request_id, item_id\) = \(\d+, 40\d\d\);.*only once",
    ),
    "clock goes backwards within a request": (
        lambda raw: raw["impressions"].append(raw["impressions"][0] | {"item_id": 4999, "timestamp": 41}),
        r"rows (1 and \d+|\d+ and 1) belong to one request, \d+, but differ in 'timestamp': \d+ and 41; the rows",
    ),
    "two users in a request": (
        lambda raw: raw["impressions"].append(raw["impressions"][0] | {"item_id": 4999, "user_id": 77}),
        r"belong to one request, \d+, but differ in 'user_id': 77 and \d+",
    ),
    "two grades of a pair": (
        lambda raw: raw["judgments"].append(raw["judgments"][0] | {"relevance": 1.25}),
        r"judgments.parquet: rows 1 and \d+ grade the same \(query_id, item_id\) with [\d.]+ and 1.25; a pair has one grade",
    ),
    "mostly unknown items": (
        setting_all("impressions", "item_id", lambda i: i + 500),
        r"impressions.parquet: (\d+) of \1 rows have a item_id that is not in items.parquet \(such as 45\d\d\); are these",
    ),
    "no such group": (lambda raw: None, r"data.query_group: 'categry_id' is neither .* \(did you mean 'category_id'\?\)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_named(tmp_path: Path, kind: str) -> None:
    raw = random_log()
    change, message = BAD[kind]
    change(raw)
    settings = {"query_group": "categry_id"} if kind == "no such group" else {}
    with pytest.raises(RawLogError, match=f"(?s){message}"):
        load(raw, tmp_path, **settings)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [("click", "maybe", "0 or 1"), ("timestamp", "12:30", "seconds")],
)
def test_bad_values_of_csv_are_named(tmp_path: Path, column: str, value: Any, expected: str) -> None:
    raw = random_log()
    setting_all("impressions", column, str)(raw)
    setting("impressions", 12, **{column: value})(raw)
    with pytest.raises(RawLogError, match=rf"impressions.csv: column '{column}', row 12: {value!r}; expected {expected}"):
        load(raw, tmp_path, suffix="csv")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = write_log(random_log(), tmp_path / "raw")
    (folder / "items.parquet").unlink()
    with pytest.raises(RawLogError, match=r"items: there is no file .*items.parquet; set data.raw.items.path"):
        prepare(DataConfig(), TEXT, folder, tmp_path / "out", progress=False)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    folder = write_log(random_log(), tmp_path / "raw")
    (folder / "items.parquet").write_text("item_id,title", encoding="utf-8")
    with pytest.raises(RawLogError, match=r"items: .*items.parquet cannot be read: "):
        prepare(DataConfig(), TEXT, folder, tmp_path / "out", progress=False)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    folder = write_log(random_log(), tmp_path / "raw")
    (folder / "items.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RawLogError, match=r"items.json is neither Parquet nor CSV; its name must end in one of .parquet, .csv"):
        prepare(DataConfig(raw=RawLog(items=RawTable(path="items.json"))), TEXT, folder, tmp_path / "out", progress=False)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """It can be read once, and hangs where nobody writes."""
    raw = write_log(random_log(requests=12), tmp_path)
    (raw / "items.parquet").unlink()
    os.mkfifo(raw / "items.parquet")
    with pytest.raises(RawLogError, match=r"items.parquet is a pipe or a device"):
        prepare(DataConfig(), TEXT, raw, tmp_path / "out", progress=False)


def test_the_bad_row_is_counted_within_its_own_file(tmp_path: Path) -> None:
    raw = random_log()
    setting("impressions", 103, click=7)(raw)
    folder = write_log(raw, tmp_path / "raw")
    write_table(raw["impressions"][:100], folder / "day-1.parquet")
    write_table(raw["impressions"][100:], folder / "day-2.parquet")
    data = DataConfig(raw=RawLog(impressions=RawTable(path="day-*.parquet")))
    with pytest.raises(RawLogError, match=r"day-2.parquet: column 'click', row 3: 7"):
        prepare(data, TEXT, folder, tmp_path / "out", progress=False)


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    folder = write_log(random_log(), tmp_path / "raw", suffix="csv")
    header = (folder / "impressions.csv").read_text(encoding="utf-8").splitlines()[0]
    (folder / "impressions.csv").write_text(header + "\n", encoding="utf-8")
    data = DataConfig(raw=RawLog(**{n: RawTable(path=f"{n}.csv") for n in ("impressions", "items", "queries", "judgments")}))
    with pytest.raises(RawLogError, match=r"impressions.csv: the log is empty"):
        prepare(data, TEXT, folder, tmp_path / "out", progress=False)


def test_rows_of_unknown_items_and_queries_are_dropped_and_counted(tmp_path: Path) -> None:
    raw = random_log()
    setting("impressions", 1, item_id=9)(raw)
    raw["impressions"].append(raw["impressions"][-1] | {"request_id": 9999, "query_id": 9})
    raw["judgments"] += [{"query_id": 9, "item_id": 9, "relevance": 1.0}, raw["judgments"][0]]
    raw["judgments"].append({"query_id": raw["queries"][5]["query_id"], "item_id": 4001, "relevance": None})
    manifest = load(raw, tmp_path)
    assert manifest["dropped"] == {
        "judgments without a grade": 1,
        "judgments of an unknown query or item": 1,
        "judgments given twice": 1,
        "impressions of an unknown query": 1,
        "impressions of an unknown item": 1,
    }
    assert manifest["counts"]["events"] == manifest["rows"]["impressions"] - 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"item_id": 4001}], r"a file of candidates needs a column 'request_id' or 'query_id' beside 'item_id'"),
        (
            [{"request_id": 1, "item_id": i} for i in (4001, None, None)],
            r"candidates.parquet: column 'item_id', row 2: None; expected an id, which 2 of 3 rows lack",
        ),
        ([{"request_id": 1, "item_id": 4001}] * 2, r"rows 1 and 2 have the same \(request_id, item_id\) = \(1, 4001\)"),
        ([{"request_id": 12345, "item_id": 4001}], r"1 of 1 rows have a request_id that is not in the log \(such as 12345\)"),
    ],
)
def test_bad_candidates_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    folder = write_log(random_log(), tmp_path / "raw")
    write_table(rows, tmp_path / "candidates.parquet")
    with pytest.raises(RawLogError, match=message):
        prepare(DataConfig(), TEXT, folder, tmp_path / "out", candidates=tmp_path / "candidates.parquet", progress=False)


def test_unknown_candidates_are_dropped_and_counted(tmp_path: Path) -> None:
    folder = write_log(random_log(), tmp_path / "raw")
    write_table([{"request_id": 1, "item_id": i} for i in (4001, 4002, 9)], tmp_path / "candidates.parquet")
    manifest = prepare(DataConfig(), TEXT, folder, tmp_path / "out", candidates=tmp_path / "candidates.parquet", progress=False)
    assert manifest["dropped"]["candidates of an unknown item"] == 1
    assert manifest["splits"]["candidates"]["candidates"] == 2


@pytest.mark.parametrize("value", ["", "a", "Käse", "12"])
def test_text_ids_hash_as_in_the_database(value: str) -> None:
    (found,) = duckdb.execute(f"SELECT CAST(md5_number_lower(?) & {2**63 - 1} AS BIGINT)", [value]).fetchall()
    assert found == (hash_id(value),)


def test_unsigned_ids_keep_all_bits(tmp_path: Path) -> None:
    raw = random_log()
    folder = write_log(raw, tmp_path / "raw")
    table = pq.read_table(folder / "impressions.parquet")
    users = np.uint64(2**64 - 1) - table["user_id"].to_numpy().astype(np.uint64)
    place = table.schema.get_field_index("user_id")
    pq.write_table(table.set_column(place, "user_id", pa.array(users)), folder / "impressions.parquet")
    prepare(DataConfig(), TEXT, folder, tmp_path / "out", progress=False)
    assert {row["user_id"] for row in read_split(tmp_path / "out", "train")} <= {
        -1 - event["user_id"] for event in raw["impressions"]
    }


def test_quoting_that_the_head_of_a_file_does_not_show_is_read(tmp_path: Path) -> None:
    raw = random_log()
    event = raw["impressions"][0]
    raw["queries"] += [{"query_id": 10_000 + i, "query": f"plain {i}"} for i in range(30_000)]
    texts = ("red, lamp", 'an 8" lamp', "two\nlines")
    raw["queries"] += [{"query_id": 50_000 + i, "query": text} for i, text in enumerate(texts)]
    raw["impressions"] += [{**event, "request_id": 90_000 + i, "query_id": 50_000 + i, "position": 1} for i in range(3)]
    load(raw, tmp_path, suffix="csv")
    found = {row["query"] for split in ("train", "validation", "test") for row in read_split(tmp_path / "out", split)}
    assert {*texts} <= found


def test_a_csv_that_breaks_off_is_named(tmp_path: Path) -> None:
    folder = write_log(random_log(), tmp_path / "raw", suffix="csv")
    with (folder / "items.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"{9_000 + i},lamp,1,1\n" for i in range(30_000))
        file.write("99999,lamp,1,1,1,1,1,1\n")
    data = DataConfig(raw=RawLog(**{n: RawTable(path=f"{n}.csv") for n in ("impressions", "items", "queries", "judgments")}))
    with pytest.raises(RawLogError, match=r"items.csv cannot be read: row 30021 has 8 fields, the header has 4"):
        prepare(data, TEXT, folder, tmp_path / "out", progress=False)


def test_milliseconds_are_no_seconds(tmp_path: Path) -> None:
    raw = random_log()
    setting_all("impressions", "timestamp", lambda t: 1_700_000_000_000 + t)(raw)
    with pytest.raises(RawLogError, match=r"column 'timestamp', row 1: \d+; expected seconds, not negative and no milli"):
        load(raw, tmp_path)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_attributes_written_as_zero_are_counted_since_zero_is_none(tmp_path: Path, suffix: str) -> None:
    raw = random_log()
    for row in raw["items"]:
        row["category_id"] = 7
    raw["items"][3]["category_id"] = 0
    raw["items"][4]["category_id"] = None
    assert load(raw, tmp_path, suffix=suffix)["zeros"]["items.category_id"] == 1


def test_one_mistyped_id_that_makes_text_of_a_csv_column_is_named(tmp_path: Path) -> None:
    raw = random_log()
    user = raw["impressions"][4]["user_id"]
    row = next(number for number, impression in enumerate(raw["impressions"], 1) if impression["user_id"] == user)
    for impression in raw["impressions"]:
        impression["user_id"] = f"{impression['user_id']}" + "x" * (impression["user_id"] == user)
    found = load(raw, tmp_path, suffix="csv")["mixed_ids"]
    assert list(found) == ["impressions.user_id"]
    assert found["impressions.user_id"].startswith(f"impressions.csv, row {row}: '{user}x' (")


def test_ids_that_are_all_text_or_all_whole_numbers_are_no_mixture(tmp_path: Path) -> None:
    raw = random_log()
    setting_all("impressions", "user_id", lambda user: f"u{user}")(raw)
    assert load(raw, tmp_path, suffix="csv")["mixed_ids"] == {}
