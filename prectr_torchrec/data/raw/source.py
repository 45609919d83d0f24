"""One table of the raw log: what its columns hold in each of its files, and the exact row that is wrong.

Every check is one aggregate over the whole table; only when one fails are the files read again to find the first bad row.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from prectr_torchrec.config.data import RawTable
from prectr_torchrec.data.raw.files import MAX_TEXT, Part, join_parts, open_part, unreadable
from prectr_torchrec.data.raw.files import RawLogError as RawLogError
from prectr_torchrec.data.raw.readings import (
    Reading,
    as_text,
    element_type,
    family,
)

Connection = duckdb.DuckDBPyConnection
FoundRow = tuple[Path, int, tuple[Any, ...]]
"""File, 1-based data row in that file, values of the columns asked for as the file has them."""


class Problems:
    """Collects what is wrong with a log, so that one message says all of it."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        try:
            yield
        except RawLogError as error:
            self.found.append(str(error))

    def refuse(self) -> None:
        """Raises RawLogError where anything was collected."""
        if self.found:
            raise RawLogError("\n".join(self.found))


@dataclass(frozen=True)
class Source:
    """The files of one raw table.

    Args:
        name: `impressions`, `items`, ...
        parts: its files, those with equal columns together.
        columns: our column name -> the files' column name, for every column that is there.
    """

    name: str
    parts: tuple[Part, ...]
    columns: dict[str, str]

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(sorted(file for part in self.parts for file in part.files))

    @property
    def label(self) -> str:
        """How messages call the table: its file, or the first of them."""
        files = self.files
        return files[0].name if len(files) == 1 else f"{files[0].name} (and {len(files) - 1} more)"

    def place(self, part: Part, column: str) -> tuple[str, str] | None:
        """SQL name and type of a column in some of the files; None where they lack it."""
        for number, (name, type_) in enumerate(part.columns):
            if name == self.columns[column]:
                return f"c{number}", type_
        return None

    def types(self, column: str) -> list[tuple[Part, str]]:
        """The type of a column wherever it is."""
        found = ((part, self.place(part, column)) for part in self.parts)
        return [(part, place[1]) for part, place in found if place]

    def count(self, con: Connection, conditions: Mapping[str, Callable[[str, str], str]]) -> tuple[int, list[int]]:
        """Rows, and how many of them satisfy each condition: our column name -> SQL of its SQL name and type."""
        total, counts = 0, [0] * len(conditions)
        for part in self.parts:
            places = {column: self.place(part, column) for column in conditions}
            sql = [place and condition(*place) for place, condition in zip(places.values(), conditions.values(), strict=True)]
            rows, *found = scan(con, self, part, [f"count(*) FILTER (WHERE {condition or 'false'})" for condition in sql])
            total, counts = total + rows, [a + b for a, b in zip(counts, found, strict=True)]
        return total, counts


class Table:
    """A source with how each of its columns is to be read.

    Args:
        source: the files.
        readings: our column name -> how to read it, of those columns that are there.
        names: our column name -> what SQL calls it, where that is something else; a log's own names can be any.

        fits: column of lists -> another one, whose lists have as many values in each row.

    A column that cannot be read so, or has types in two files that do not go together, is among the `refused`, as `check` says.
    """

    def __init__(
        self,
        source: Source,
        readings: Mapping[str, Reading],
        names: Mapping[str, str] | None = None,
        fits: Mapping[str, str] | None = None,
    ) -> None:
        self.source, self.readings = source, {name: reading for name, reading in readings.items() if name in source}
        self.names, self.fits = {column: column for column in self.readings} | dict(names or {}), fits or {}
        self.refused: dict[str, str] = {}
        for column, reading in self.readings.items():
            try:
                _refuse_types(source, column, reading)
            except RawLogError as error:
                self.refused[column] = str(error)

    def select(self) -> str:
        """SQL of all rows, each column as it was read, by its name in SQL."""
        return " UNION ALL ".join(f"SELECT {', '.join(self._values(part))} FROM {part.scan()}" for part in self.source.parts)

    def select_ids(self, column: str) -> str:
        """SQL of a column of ids: `id` as it was read, `text` as it is written."""
        there = ((part, self.source.place(part, column)) for part in self.source.parts)
        ids = ((part, self._read(part, column)[0], as_text(*place)) for part, place in there if place)
        return " UNION ALL ".join(f"SELECT {value} AS id, {text} AS text FROM {part.scan()}" for part, value, text in ids)

    def owner(self, column: str) -> Table:
        """The table that has a column, of one that is made of several."""
        return self

    def check(self, con: Connection) -> int:
        """Applies all checks in one scan and returns the number of rows.

        Raises:
            RawLogError: names file, column, row, value and what would be right, for each column with a bad value.
        """
        readable = [column for column in self.readings if column not in self.refused]
        total, counts, first = 0, dict.fromkeys(readable, 0), {}
        for part in self.source.parts:
            bad = {column: self._bad(part, column) for column in readable}
            rows, *found = scan(con, self.source, part, [f"count(*) FILTER (WHERE {sql})" for sql in bad.values()])
            total += rows
            for column, count in zip(bad, found, strict=True):
                counts[column] += count
                if count and column not in first:
                    (first[column],) = self._find(con, part, [column], bad[column], 1)
        problems = [*self.refused.values(), *(self._describe(column, first[column], counts[column]) for column in first)]
        if problems:
            raise RawLogError("\n".join(problems))
        return total

    def find(self, con: Connection, columns: Sequence[str], condition: str, limit: int) -> list[FoundRow]:
        """The first rows under a condition on the columns as they are read, by their names in SQL."""
        found: list[FoundRow] = []
        for part in self.source.parts:
            found += self._find(con, part, columns, condition, limit - len(found))
            if len(found) == limit:
                break
        return found

    def _find(self, con: Connection, part: Part, columns: Sequence[str], condition: str, limit: int) -> list[FoundRow]:
        found: list[FoundRow] = []
        raw = {f'"raw {place}"': _shown(self.source.place(part, column)) for place, column in enumerate(columns)}
        for file in part.files:
            added = ", ".join([*self._values(part), *(f"{sql} AS {name}" for name, sql in raw.items())])
            numbered = f'SELECT row_number() OVER () AS "row number", {added}, * FROM {part.scan([file])}'
            query = f'SELECT "row number", {", ".join(raw)} FROM ({numbered}) WHERE {condition} ORDER BY 1'
            rows = con.execute(f"{query} LIMIT {limit - len(found)}").fetchall()
            found += [(file, row, tuple(values)) for row, *values in rows]
            if len(found) == limit:
                break
        return found

    def _values(self, part: Part) -> list[str]:
        readable = [column for column in self.readings if column not in self.refused]
        return [f"{self._read(part, column)[0]} AS {quote(self.names[column])}" for column in readable]

    def _read(self, part: Part, column: str) -> tuple[str, str]:
        """SQL of the value and of whether it is bad."""
        place, reading = self.source.place(part, column), self.readings[column]
        return reading.read(*place) or ("NULL", "true") if place else (reading.absent, "false")

    def _bad(self, part: Part, column: str) -> str:
        place, (_, bad) = self.source.place(part, column), self._read(part, column)
        if (other := self.fits.get(column)) in self.readings and other not in self.refused:
            values, fitting = (self._read(part, name)[0] for name in (column, other))
            bad = f"({bad}) OR len({values}) <> len({fitting})"
        return f"({bad}) OR coalesce({_too_long(*place)}, false)" if place and _too_long(*place) else bad

    def _describe(self, column: str, row: FoundRow, count: int) -> str:
        file, number, (value,) = row
        more = f" ({count - 1} more such rows)" if count > 1 else ""
        long = isinstance(value, str) and len(value) > _MAX_SHOWN
        expected = f"at most {MAX_TEXT:,} bytes" if long else self.readings[column].expected
        shown = f"{value[:40]!r}..." if long else shown_value(value)
        return f"{file}: column {self.source.columns[column]!r}, row {number}: {shown}; expected {expected}{more}"


_MAX_SHOWN = 200
"""Characters of a value, in a message."""
_MAX_LIST = 60
_MAX_NAMES = 50


def open_source(
    con: Connection, name: str, table: RawTable, files: tuple[Path, ...], required: Sequence[str], optional: Sequence[str] = ()
) -> Source:
    """Looks into the files of a raw table for its columns.

    Args:
        con: any connection.
        name: the table's name under `data.raw`.
        table: the column mapping and the dialect.
        files: from `find_files`.
        required: our names of the columns that must be there.
        optional: our names of the columns that may be.

    Raises:
        RawLogError: unreadable files or missing columns.
    """
    wanted = {column: table.columns.get(column, column) for column in (*required, *optional)}
    problems, parts = Problems(), []
    missing: dict[str, list[Part]] = {}
    for file in files:
        with problems.collecting():
            if (part := open_part(con, name, table, file, list(wanted.values()))) is None:
                continue
            parts.append(part)
            names = [column for column, _ in part.columns]
            for column in required:
                if wanted[column] not in names:
                    missing.setdefault(column, []).append(part)
            for theirs in dict.fromkeys(wanted.values()):
                if names.count(theirs) > 1:
                    raise RawLogError(f"{file}: column {theirs!r} is there {names.count(theirs)} times; keep one of them")
    problems.found += [_missing(name, table, column, lacking) for column, lacking in missing.items()]
    if not parts and not problems.found:
        problems.found.append(f"{name}: {files[0]} is empty; a CSV begins with the names of its columns")
    problems.refuse()
    there = {column for part in parts for column, _ in part.columns}
    return Source(name, join_parts(parts), {column: theirs for column, theirs in wanted.items() if theirs in there})


def shown_value(value: Any) -> str:
    """A value of a found row, for messages."""
    return f"a list of {value[0]}, {value[1]}" if isinstance(value, list) else repr(value)


def describe_rows(found: Sequence[FoundRow]) -> str:
    """`impressions.parquet: rows 3 and 7`, for messages."""
    files = {file for file, _, _ in found}
    if len(files) == 1:
        return f"{found[0][0]}: rows {' and '.join(str(row) for _, row, _ in found)}"
    return " and ".join(f"{file}: row {row}" for file, row, _ in found)


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def text_literal(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def open_duckdb(database: str = ":memory:", **options: Any) -> Connection:
    """DuckDB without progress bars of its own: it prints them to the standard output."""
    con = duckdb.connect(database, config=options)
    con.execute("SET enable_progress_bar = false")
    return con


def one_row(con: Connection, query: str) -> tuple:
    (row,) = con.execute(query).fetchall()
    return row


def scan(con: Connection, source: Source, part: Part, aggregates: Sequence[str]) -> tuple:
    """The number of rows and further aggregates over some files of a table.

    Raises:
        RawLogError: a file that cannot be read to its end.
    """
    try:
        return one_row(con, f"SELECT {', '.join(['count(*)', *aggregates])} FROM {part.scan()}")
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except duckdb.Error as error:
        for file in part.files:  # which one?
            try:
                one_row(con, f"SELECT {', '.join(['count(*)', *aggregates])} FROM {part.scan([file])}")
            except duckdb.Error as of_file:
                raise RawLogError(f"{source.name}: {file} cannot be read: {unreadable(part, file, of_file)}") from None
        raise RawLogError(f"{source.name}: {part.files[0]} cannot be read: {unreadable(part, part.files[0], error)}") from None


def _missing(name: str, table: RawTable, column: str, lacking: list[Part]) -> str:
    (file,), columns = lacking[0].files, [name for name, _ in lacking[0].columns]
    wanted = table.columns.get(column, column)
    close = difflib.get_close_matches(wanted, columns, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    if any(folder.startswith(f"{wanted}=") for folder in file.parts):
        hint = f", and what the name of a folder says is not read: write the column into the files{hint}"
    more = f" (and of {len(lacking) - 1} more files)" if len(lacking) > 1 else ""
    advice = f". Where it has another name, map it: data.raw.{name}.columns: {{{column}: <name in the file>}}"
    there = ", ".join(name if name.isprintable() else repr(name) for name in columns[:_MAX_NAMES])
    there += f" and {len(columns) - _MAX_NAMES} more" if len(columns) > _MAX_NAMES else ""
    return f"{file}: column {wanted!r} is missing{more}{hint}; columns there: {there}{advice if table.path else ''}"


def _refuse_types(source: Source, column: str, reading: Reading) -> None:
    types = source.types(column)
    for part, type_ in types:
        if reading.read("c", type_) is None:
            where, expected = f"{part.files[0]}: column {source.columns[column]!r}", reading.types or reading.expected
            raise RawLogError(f"{where} is {type_}; expected {expected}")
    of_values = sorted((at for at in types if family(at[1])), key=lambda at: -len(at[0].files))
    for part, type_ in of_values[1:]:
        most, usual = of_values[0]
        if family(type_) != family(usual):
            raise RawLogError(
                f"{part.files[0]}: column {source.columns[column]!r} is {type_}, in {most.files[0]} it is {usual}; "
                f"write it alike in all files: expected {reading.expected}"
            )


def _too_long(sql: str, type_: str) -> str:
    length = {"VARCHAR": "strlen", "BLOB": "octet_length"}.get(type_)
    return f"{length}({sql}) > {MAX_TEXT}" if length else ""


def _shown(place: tuple[str, str] | None) -> str:
    """A value for a message: none is longer than that."""
    if place is None:
        return "NULL"
    sql, type_ = place
    if element_type(type_):
        return f"CASE WHEN {sql} IS NOT NULL THEN [len({sql})::VARCHAR, left({sql}::VARCHAR, {_MAX_LIST})] END"
    return f"left({sql}::VARCHAR, {_MAX_SHOWN + 1})" if type_ in ("VARCHAR", "BLOB", "UUID") else sql
