"""Types of a raw log's columns: what is exact is read, whoever wrote it; what differs among files is told."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import load, random_log, recast, small_log, write_log

from prectr_torchrec.config.data import DataConfig, RawLog, RawTable
from prectr_torchrec.data.hashing import hash_id
from prectr_torchrec.data.raw.source import RawLogError
from prectr_torchrec.data.raw.tables import load_candidates


def days(tmp_path: Path, *converts: Callable[[pa.Table], pa.Table]) -> Path:
    """A log with its impressions in as many files as there are conversions."""
    folder = write_log(small_log(), tmp_path)
    table = pq.read_table(folder / "impressions.parquet")
    size = -(-len(table) // len(converts))
    for day, convert in enumerate(converts):
        pq.write_table(convert(table.slice(day * size, size)), folder / f"day-{day + 1}.parquet")
    return folder


def as_type(column: str, type_: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.schema.get_field_index(column), column, t[column].cast(type_))


def valued(column: str, value: int, type_: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.schema.get_field_index(column), column, pa.array([value] * len(t), type_))


IN_TIME = "SELECT min(timestamp) >= 0 AND max(timestamp) < 40 FROM events"
BY_DAY = RawLog(impressions=RawTable(path="day-*.parquet"))


@pytest.mark.parametrize(
    ("converts", "message"),
    [
        (
            [as_type("click", pa.int64()), as_type("click", pa.string())],
            r"day-2.parquet: column 'click' is VARCHAR, in .*day-1.parquet it is BIGINT; write it alike",
        ),
        (
            [as_type("click", pa.string()), as_type("click", pa.int8()), as_type("click", pa.int8())],
            r"day-1.parquet: column 'click' is VARCHAR, in .*day-2.parquet it is TINYINT",
        ),
        (
            [as_type("user_id", pa.int64()), as_type("user_id", pa.string())],
            r"day-2.parquet: column 'user_id' is VARCHAR, in .*day-1.parquet it is BIGINT",
        ),
        (
            [lambda t: t.drop_columns("position"), valued("position", -1, pa.int32())],
            r"day-2.parquet: column 'position', row 1: -1; expected a position",
        ),
        ([as_type("click", pa.float64()), valued("click", 3, pa.int64())], r"day-2.parquet: column 'click', row 1: 3; exp"),
        ([as_type("click", pa.int64()), lambda t: t.drop_columns("click")], r"day-2.parquet: column 'click' is missing"),
    ],
)
def test_files_that_differ_are_told_from_each_other(tmp_path: Path, converts: list[Any], message: str) -> None:
    with pytest.raises(RawLogError, match=message):
        load(days(tmp_path, *converts), raw=BY_DAY)


@pytest.mark.parametrize(
    ("column", "other"), [("user_id", pa.uint64()), ("click", pa.float32()), ("position", pa.null()), ("timestamp", pa.int32())]
)
def test_types_that_hold_the_same_values_are_read_together(tmp_path: Path, column: str, other: pa.DataType) -> None:
    def nulled(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index(column), column, pa.nulls(len(table)))

    plain, _ = load(write_log(small_log(), tmp_path / "plain"))
    folder = days(tmp_path, lambda t: t, nulled if other == pa.null() else as_type(column, other))
    con, _ = load(folder, raw=BY_DAY)
    if other != pa.null():
        rows = f"SELECT {column} FROM events ORDER BY ALL"
        assert con.execute(rows).fetchall() == plain.execute(rows).fetchall()


@pytest.mark.parametrize(
    ("signed", "unsigned", "message"),
    [
        (7, 2**63 + 5, None),
        (-1, 7, r"day-1.parquet: column 'user_id', row 1: -1; expected an id"),
        (-1, 2**64 - 1, r"day-1.parquet: column 'user_id', row 1: -1; expected an id"),
    ],
)
def test_signed_ids_beside_unsigned_ones_are_read_where_they_fit(
    tmp_path: Path, signed: int, unsigned: int, message: str | None
) -> None:
    raw = random_log(requests=2)
    folder = write_log(raw, tmp_path)
    table = pq.read_table(folder / "impressions.parquet").sort_by("request_id")
    first = sum(request == 0 for request in table["request_id"].to_pylist())
    for day, (rows, user, type_) in enumerate(
        [(table.slice(0, first), signed, pa.int64()), (table.slice(first), unsigned, pa.uint64())], 1
    ):
        pq.write_table(valued("user_id", user, type_)(rows), folder / f"day-{day}.parquet")
    if message:
        with pytest.raises(RawLogError, match=message):
            load(folder, raw=BY_DAY)
        return
    con, report = load(folder, raw=BY_DAY)
    found = {user for (user,) in con.execute("SELECT DISTINCT user_id FROM events").fetchall()}
    assert found == {signed, unsigned - 2**64} and report["id_kinds"]["user_id"] == "unsigned"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_ids_of_candidates_are_held_to_those_of_the_log(tmp_path: Path, suffix: str) -> None:
    folder = write_log(small_log(), tmp_path)
    con, report = load(folder)
    wanted = tmp_path / f"wanted.{suffix}"
    if suffix == "csv":
        wanted.write_text("request_id,item_id\n1,4001\n1,4001.5\n", encoding="utf-8")
    else:
        pq.write_table(pa.table({"request_id": [1, 1], "item_id": [4001.0, 4001.5]}), wanted)
    with pytest.raises(RawLogError, match=r"column 'item_id', row 2: '?4001.5'?; expected an id"):
        load_candidates(con, (wanted,), report["id_kinds"], DataConfig(), {})


def texts(convert: Callable[[Any], Any], type_: pa.DataType) -> Callable[[pa.ChunkedArray], Any]:
    return lambda column: pa.array([convert(value) for value in column.to_pylist()], type_)


def iso(form: str) -> Callable[[pa.ChunkedArray], Any]:
    """Seconds as text, of a zone two hours ahead of UTC where the form has one."""
    ahead = 7200 if "+" in form else 0
    return texts(lambda v: datetime.datetime.fromtimestamp(v + ahead, datetime.UTC).strftime(form), pa.string())


@pytest.mark.parametrize(
    ("table", "column", "convert", "sql", "expected"),
    [
        ("items", "brand_id", lambda c: pa.nulls(len(c)), "SELECT DISTINCT items_1 FROM items", [(0,)]),
        ("impressions", "position", lambda c: pa.nulls(len(c)), "SELECT DISTINCT position FROM events", [(0,)]),
        ("judgments", "relevance", lambda c: pa.nulls(len(c)), "SELECT count(*) FROM judgments", [(0,)]),
        ("items", "title", lambda c: pa.nulls(len(c)), "SELECT DISTINCT title FROM items", [("",)]),
        ("items", "title", texts(str.encode, pa.binary()), "SELECT title FROM items WHERE item_id = 4001", [("title 1 ä",)]),
        ("items", "title", lambda c: c.dictionary_encode(), "SELECT title FROM items WHERE item_id = 4001", [("title 1 ä",)]),
        ("items", "item_id", texts(decimal.Decimal, pa.decimal128(38, 0)), "SELECT min(item_id) FROM items", [(4000,)]),
        ("items", "item_id", texts(decimal.Decimal, pa.decimal128(20, 3)), "SELECT min(item_id) FROM items", [(4000,)]),
        ("items", "item_id", texts(float, pa.float64()), "SELECT min(item_id) FROM items", [(4000,)]),
        ("impressions", "timestamp", texts(lambda v: v * 10**6, pa.timestamp("us")), IN_TIME, [(True,)]),
        ("impressions", "timestamp", texts(lambda v: v * 10**9, pa.timestamp("ns", "Asia/Tokyo")), IN_TIME, [(True,)]),
        ("impressions", "timestamp", iso("%Y-%m-%dT%H:%M:%S+02:00"), IN_TIME, [(True,)]),
        ("impressions", "timestamp", iso("%Y-%m-%d %H:%M:%S.000Z"), IN_TIME, [(True,)]),
        ("impressions", "timestamp", iso("%Y-%m-%dT%H:%M:%S+0200"), IN_TIME, [(True,)]),
        ("impressions", "timestamp", iso("%Y-%m-%d %H:%M:%S"), IN_TIME, [(True,)]),
        # fractions are dropped
        ("impressions", "timestamp", texts(lambda v: v * 10**6 + 999_999, pa.timestamp("us")), IN_TIME, [(True,)]),
        ("impressions", "timestamp", texts(lambda v: v * 10**9 + 999_999_999, pa.timestamp("ns")), IN_TIME, [(True,)]),
        ("impressions", "timestamp", texts(lambda v: v + 0.75, pa.float64()), IN_TIME, [(True,)]),
        (
            "impressions",
            "timestamp",
            texts(lambda v: decimal.Decimal(v) + decimal.Decimal("0.999"), pa.decimal128(18, 3)),
            IN_TIME,
            [(True,)],
        ),
        ("impressions", "timestamp", texts(lambda v: f"{v}.9999999999", pa.string()), IN_TIME, [(True,)]),
        ("impressions", "timestamp", iso("%Y-%m-%dT%H:%M:%S.9999999Z"), IN_TIME, [(True,)]),
        ("impressions", "timestamp", iso("%Y-%m-%d %H:%M:%S.5"), IN_TIME, [(True,)]),
        (
            "impressions",
            "request_id",
            texts(lambda v: uuid.UUID(int=v).bytes, pa.uuid()),
            "SELECT count(DISTINCT request_id) FROM events",
            [(12,)],
        ),
        (
            "items",
            "category_id",
            texts(lambda v: uuid.UUID(int=7).bytes, pa.uuid()),
            "SELECT DISTINCT items_0 FROM items",
            [(hash_id(str(uuid.UUID(int=7))),)],
        ),
    ],
)
def test_types_of_other_writers_are_read(
    tmp_path: Path, table: str, column: str, convert: Any, sql: str, expected: list[tuple[Any, ...]]
) -> None:
    folder = write_log(small_log(), tmp_path)
    recast(folder / f"{table}.parquet", column, convert)
    con, _ = load(folder)
    assert con.execute(sql).fetchall() == expected


@pytest.mark.parametrize(
    ("table", "column", "convert", "message"),
    [
        ("items", "brand_id", texts(lambda v: 2.0**53, pa.float64()), r"row 1: 9007199254740992.0; expected .* below 2\*\*53"),
        ("items", "brand_id", texts(lambda v: 2.0**11, pa.float16()), r"row 1: 2048.0; expected .* a whole number"),
        ("items", "brand_id", texts(lambda v: 2.0**24, pa.float32()), r"row 1: 16777216.0; expected .* a whole number"),
        ("impressions", "user_id", texts(lambda v: v + 0.5, pa.float64()), r"row 1: [\d.]+; expected an id"),
        ("items", "item_id", texts(lambda v: decimal.Decimal(v) + 2**64, pa.decimal128(38, 0)), r"row 1: .*; expected an id"),
        ("queries", "query_id", texts(lambda v: [v], pa.list_(pa.int64())), r"is BIGINT\[\]; expected ids: 64-bit whole"),
        ("items", "title", texts(lambda v: b"\xff", pa.binary()), r"row 1: '\\\\xFF'; expected text \(of bytes: UTF-8\)"),
        ("impressions", "timestamp", iso("%d.%m.%Y"), r"row 1: '01.01.1970'; expected seconds"),
        ("impressions", "timestamp", iso("%Y-13-%d"), r"row 1: '1970-13-01'; expected seconds"),
        ("impressions", "timestamp", iso("%Y-%m-%d %H:%M:%S Europe/Berlin"), r"Berlin'; expected seconds"),
    ],
)
def test_values_that_could_not_be_exact_are_refused(tmp_path: Path, table: str, column: str, convert: Any, message: str) -> None:
    folder = write_log(small_log(), tmp_path)
    recast(folder / f"{table}.parquet", column, convert)
    with pytest.raises(RawLogError, match=f"{table}.parquet: column '{column}'.*{message}"):
        load(folder)
