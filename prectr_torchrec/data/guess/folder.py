"""The tables in a folder, and what their columns hold: one scan of at most `MOST_ROWS` rows each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prectr_torchrec.config.data import RawTable
from prectr_torchrec.data.raw.files import SUFFIXES, Part, RawLogError, find_files, join_parts, open_part
from prectr_torchrec.data.raw.readings import Reading, element_type, is_number, is_text, measure, seconds, whole_number
from prectr_torchrec.data.raw.source import Connection, Source, one_row, scan

MOST_ROWS = 1_000_000
SEPARATORS = ("|", ";", ",")
_MOMENTS = seconds(0, 10**11, nullable=True)
_NUMBERS = measure(-1e30, 1e30)
_WHOLE = whole_number(-(2**63), 2**63 - 1, "", nullable=True)
_FLAGS = whole_number(0, 1, "", nullable=True)
_READINGS: dict[str, Reading] = {"moments": _MOMENTS, "numbers": _NUMBERS, "whole": _WHOLE, "flags": _FLAGS}


@dataclass(frozen=True)
class Seen:
    """A column of a table, as the rows that were looked at have it.

    Args:
        name: in the file.
        type: DuckDB's, of the first file that has the column.
        rows, filled, distinct: rows, values that are neither null nor empty, and about how many different ones.
        bad: `moments`, `numbers`, `whole` or `flags` -> values that are none.
        low, high, middle: of numbers.
        text_length: characters of a value on average, of text.
        lengths: the shortest and the longest list, of lists.
    """

    name: str
    type: str
    rows: int
    filled: int
    distinct: int
    bad: dict[str, int]
    low: float | None
    high: float | None
    middle: float | None
    text_length: float
    lengths: tuple[int, int] | None

    def all(self, kind: str) -> bool:
        """Whether every value is of a kind; of a column without values none is."""
        return self.filled > 0 and self.bad[kind] == 0

    @property
    def element(self) -> str:
        """The type of the elements of lists, "" of what is none."""
        return element_type(self.type)

    @property
    def written_time(self) -> bool:
        """Whether it holds moments that are more than numbers: timestamps, or text as of ISO 8601."""
        typed = self.type.startswith("TIMESTAMP") or self.type == "DATE"
        return self.all("moments") and (typed or (is_text(self.type) and not self.all("numbers")))

    @property
    def epoch_seconds(self) -> bool:
        """Whether it holds numbers that are seconds of 1973 to 2286."""
        return self.all("moments") and self.all("whole") and self.low is not None and self.low >= 10**8

    @property
    def text(self) -> bool:
        return is_text(self.type)


@dataclass(frozen=True)
class Found:
    """A table: its path below the folder, as `data.raw` takes it, its files and columns."""

    path: str
    parts: tuple[Part, ...]
    rows: int
    columns: dict[str, Seen] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every row was looked at."""
        return self.rows <= MOST_ROWS

    @property
    def source(self) -> Source:
        return Source(self.path, self.parts, {name: name for name in self.columns})

    @property
    def dialect_settings(self) -> dict[str, Any]:
        """Of CSV whose delimiter is no comma."""
        dialect = self.parts[0].dialect
        return {} if dialect is None or dialect.delimiter == "," else {"delimiter": dialect.delimiter}

    def describe(self) -> str:
        """`1,200 rows`."""
        return f"{self.rows:,} rows" + (
            "" if self.whole else f", of which the first {MOST_ROWS:,} of each kind of file were looked at"
        )


def find_tables(con: Connection, folder: Path, known: Sequence[str]) -> list[Found]:
    """The tables of a folder: each file, each subfolder of files, and files whose names differ in a number at the end.

    Args:
        con: any connection.
        folder: of the raw log.
        known: names of columns that tell a CSV's delimiter.

    Raises:
        RawLogError: no files, unreadable ones, or a subfolder that holds several tables.
    """
    if not folder.is_dir():
        raise RawLogError(f"{folder}: there is no such folder; give the folder of the log's CSV or Parquet files")
    found = [_open_table(con, folder, path, known) for path in _paths(folder)]
    tables = [table for table in found if table is not None]
    if not tables:
        raise RawLogError(f"{folder}: no file there ends in {', '.join(SUFFIXES)}; give the folder of the log's files")
    return tables


def count_where(con: Connection, table: Found, column: str, condition: Callable[[str, str], str]) -> int:
    """Rows of a table under a condition on one column, of its SQL name and type."""
    return table.source.count(con, {column: condition})[1][0]


def values_of(con: Connection, table: Found, column: str, most: int) -> list[tuple[str, int]]:
    """The most frequent values of a column, as text, and how often each is there."""
    counts: dict[str, int] = {}
    for part in table.parts:
        if place := table.source.place(part, column):
            counted = f"SELECT {place[0]}::VARCHAR, count(*) FROM {part.scan()} WHERE {place[0]} IS NOT NULL GROUP BY 1"
            for value, count in con.execute(f"{counted} ORDER BY 2 DESC, 1 LIMIT {most}").fetchall():
                counts[value] = counts.get(value, 0) + count
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]


def separator_of(con: Connection, table: Found, seen: Seen) -> tuple[str, int] | None:
    """What stands between the ids of a text column, and how many different ids there are; None where it is one text."""
    part = next(part for part in table.parts if table.source.place(part, seen.name))
    place = table.source.place(part, seen.name)
    for sign in SEPARATORS if place and seen.text else ():
        rows = f"SELECT {place[0]} AS value FROM {part.scan()} WHERE {place[0]} IS NOT NULL LIMIT {MOST_ROWS}"  # type: ignore[index]
        pieces = f"SELECT trim(unnest(string_split(value, '{sign}'))) AS piece FROM rows"
        several, filled, different, length = one_row(
            con,
            f"""WITH rows AS ({rows}), pieces AS ({pieces}) SELECT (SELECT count(*) FROM rows WHERE contains(value, '{sign}')),
            (SELECT count(*) FROM rows), (SELECT count(DISTINCT piece) FROM pieces), (SELECT avg(length(piece)) FROM pieces)""",
        )
        few = different < seen.distinct or sign == "|"  # a comma may be part of a text, a bar hardly
        if several * 20 >= filled and length <= 24 and few:
            return sign, different
    return None


def _paths(folder: Path) -> list[str]:
    """Paths of tables below the folder."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(("_", "."))]
    files = [entry.name for entry in entries if entry.is_file() and entry.name.endswith(SUFFIXES)]
    numbered: dict[str, list[str]] = {}
    for name in files:
        numbered.setdefault(_pattern(name), []).append(name)
    paths = [pattern if len(names) > 1 else names[0] for pattern, names in numbered.items()]
    return paths + [entry.name for entry in entries if entry.is_dir()]


def _pattern(name: str) -> str:
    """`impressions-2026-05-01.parquet` is one file of `impressions-*.parquet`."""
    suffix = next(suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix))
    stem = re.sub(r"([-_.]?)\d[\d\-_.T:]*$", r"\1*", name.removesuffix(suffix))
    return stem + suffix


def _open_table(con: Connection, folder: Path, path: str, known: Sequence[str]) -> Found | None:
    inside = (folder / path).is_dir()
    if inside and not any(file.name.endswith(SUFFIXES) for file in (folder / path).rglob("*")):
        return None
    files = find_files(path, RawTable(path=path), folder)
    opened = [part for file in files if (part := open_part(con, path, RawTable(path=path), file, known)) is not None]
    if not opened:
        return None
    names = [{column for column, _ in part.columns} for part in opened]
    for part, columns in zip(opened, names, strict=True):
        if 2 * len(columns & names[0]) < len(columns | names[0]):
            raise RawLogError(
                f"{folder / path} holds several tables: {opened[0].files[0].name} and {part.files[0].name} have few columns in "
                f"common. Give each table a folder or file of its own; if the log lies in one folder of {folder}, give that one: "
                f"{', '.join(str(inside) for inside in sorted(folder.iterdir()) if inside.is_dir())}"
            )
    return _look(con, Found(path, join_parts(opened), 0))


def _look(con: Connection, table: Found) -> Found:
    total, seen = 0, dict[str, Seen]()
    for part in table.parts:
        (rows,) = scan(con, table.source, part, [])
        total += rows
        aggregates = [sql for number, (_, type_) in enumerate(part.columns) for sql in _aggregates(f"c{number}", type_)]
        if rows <= MOST_ROWS:
            rows, *values = scan(con, table.source, part, aggregates)
        else:
            rows, *values = one_row(con, f"SELECT count(*), {', '.join(aggregates)} FROM (FROM {part.scan()} LIMIT {MOST_ROWS})")
        width = len(values) // len(part.columns)
        for number, (name, type_) in enumerate(part.columns):
            column = _seen(name, type_, rows, values[number * width : (number + 1) * width])
            seen[name] = _add(seen[name], column) if name in seen else column
    return replace(table, rows=total, columns=seen)


def _aggregates(sql: str, type_: str) -> list[str]:
    """SQL of what `_seen` reads, of one column."""
    text = is_text(type_)
    filled = f"nullif(trim({sql}::VARCHAR), '')" if text else sql
    number = f"TRY_CAST({sql} AS DOUBLE)" if text or is_number(type_) or type_ == "BOOLEAN" else "NULL::DOUBLE"
    bad = [found[1] if (found := reading.read(sql, type_)) else f"{sql} IS NOT NULL" for reading in _READINGS.values()]
    lists = [f"min(len({sql}))", f"max(len({sql}))"] if element_type(type_) else ["NULL", "NULL"]
    return [
        f"count({filled})",
        f"approx_count_distinct({filled})",
        f"min({number})",
        f"max({number})",
        f"approx_quantile({number}, 0.5)",
        f"avg(length({filled}))" if text else "0",
        *lists,
        *(f"count(*) FILTER (WHERE {condition})" for condition in bad),
    ]


def _seen(name: str, type_: str, rows: int, values: Sequence[Any]) -> Seen:
    filled, distinct, low, high, middle, length, short, long, *bad = values
    widths = None if short is None else (short, long)
    return Seen(
        name, type_, rows, filled, distinct, dict(zip(_READINGS, bad, strict=True)), low, high, middle, length or 0.0, widths
    )


def _add(one: Seen, other: Seen) -> Seen:
    """Both together; the middle is that of the longer one."""

    def of_both(name: str, choose: Callable[..., Any]) -> Any:
        given = [value for value in (getattr(one, name), getattr(other, name)) if value is not None]
        return choose(given) if given else None

    longer = max(one, other, key=lambda seen: seen.filled)
    lengths = [seen.lengths for seen in (one, other) if seen.lengths]
    return replace(
        longer,
        rows=one.rows + other.rows,
        filled=one.filled + other.filled,
        distinct=one.distinct + other.distinct,
        bad={kind: count + other.bad[kind] for kind, count in one.bad.items()},
        low=of_both("low", min),
        high=of_both("high", max),
        lengths=(min(low for low, _ in lengths), max(high for _, high in lengths)) if lengths else None,
    )
