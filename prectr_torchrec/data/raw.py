"""One table of the raw log: which files it is, what its columns hold, and the exact row that is wrong.

Every check is one aggregate over the whole table; only when one fails are the files read again to find the first bad row.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb

from prectr_torchrec.config import RawTable, ZeroId, nearest
from prectr_torchrec.data.hashing import zero_sql

IdKind = Literal["integer", "text"]
"""How the ids of a column are read: as they are, or as the hash of their text (`hash_id`)."""

INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
FLOATS = {"FLOAT", "DOUBLE"}
SUFFIXES = (".parquet", ".csv", ".csv.gz")
WHOLE = "'[+-]?[0-9]+([.]0*)?'"


Connection = duckdb.DuckDBPyConnection
FoundRow = tuple[Path, int, object]
"""File, 1-based data row in that file, value of the column asked for."""


class RawLogError(ValueError):
    """A raw log that cannot be prepared; the message names the file, the column and the row, and what would be right."""


@dataclass(frozen=True)
class Check:
    """A condition on a row of the file that must hold nowhere."""

    column: str
    """Our name of the column to show."""
    bad: str
    """SQL over the file's columns, true for a bad row."""
    expected: str


@dataclass(frozen=True)
class Source:
    """The files of one raw table.

    Args:
        name: `impressions`, `items`, ...
        files: the Parquet or CSV files, sorted.
        columns: our column name -> the files' column name, for every column that is there.
        types: our column name -> DuckDB type; everything is VARCHAR in CSV.
    """

    name: str
    files: tuple[Path, ...]
    columns: dict[str, str]
    types: dict[str, str]

    def __contains__(self, column: str) -> bool:
        return column in self.types

    @property
    def label(self) -> str:
        """How messages call the table: its file, or the first of them."""
        return self.files[0].name if len(self.files) == 1 else f"{self.files[0].name} (and {len(self.files) - 1} more)"

    def scan(self, files: Iterable[Path] | None = None) -> str:
        return scan_files(self.files if files is None else files)

    def sql(self, column: str) -> str:
        """The files' column as an SQL identifier."""
        return quote(self.columns[column])


def find_files(name: str, table: RawTable, folder: Path, *, optional: bool = False) -> tuple[Path, ...]:
    """The files of a raw table, sorted; none is an error unless optional.

    Raises:
        RawLogError: no such file, a file that is neither Parquet nor CSV, or both kinds.
    """
    pattern = str(folder / table.path)
    files = tuple(sorted(Path(path) for path in glob.glob(pattern, recursive=True)))
    if not files and not optional:
        raise RawLogError(f"{name}: there is no file {pattern}; set data.raw.{name}.path to a file or glob that exists")
    for file in files:
        if not file.name.endswith(SUFFIXES):
            raise RawLogError(f"{name}: {file} is neither Parquet nor CSV; its name must end in one of {', '.join(SUFFIXES)}")
    if len({file.suffix == ".parquet" for file in files}) > 1:
        raise RawLogError(f"{name}: {pattern} matches Parquet and CSV files; keep to one of the two")
    return files


def open_source(
    con: Connection, name: str, table: RawTable, files: tuple[Path, ...], required: Sequence[str], optional: Sequence[str] = ()
) -> Source:
    """Looks into the files of a raw table for its columns.

    Args:
        con: any connection.
        name: the table's name under `data.raw`.
        table: the column mapping.
        files: from `find_files`.
        required: our names of the columns that must be there.
        optional: our names of the columns that may be.

    Raises:
        RawLogError: an unreadable file or a missing column.
    """
    wanted = {column: table.columns.get(column, column) for column in (*required, *optional)}
    for file in files:
        there = _describe(con, name, (file,))
        for column in required:
            if wanted[column] not in there:
                hint = nearest(wanted[column], there) if there else ""
                raise RawLogError(
                    f"{file}: column {wanted[column]!r} is missing{hint}; columns there: {', '.join(there)}. "
                    f"Where it has another name, map it: data.raw.{name}.columns: {{{column}: <name in the file>}}"
                )
    types = _describe(con, name, files)
    present = {column: theirs for column, theirs in wanted.items() if theirs in types}
    return Source(name, files, present, {column: types[theirs] for column, theirs in present.items()})


def check_rows(con: Connection, source: Source, checks: Sequence[Check]) -> int:
    """Applies all checks in one scan and returns the number of rows.

    Raises:
        RawLogError: names file, column, row, value and what would be right.
    """
    counts = ", ".join(["count(*)", *(f"count(*) FILTER (WHERE {check.bad})" for check in checks)])
    rows, *bad = _scan(con, source, counts)
    for check, count in zip(checks, bad, strict=True):
        if count:
            file, row, value = find_rows(con, source, check.column, check.bad, 1)[0]
            where = f"{file}: column {source.columns[check.column]!r}, row {row}"
            more = f" ({count - 1} more such rows)" if count > 1 else ""
            raise RawLogError(f"{where}: {value!r}; expected {check.expected}{more}")
    return rows


def find_rows(con: Connection, source: Source, column: str, condition: str, limit: int) -> list[FoundRow]:
    """The first rows under a condition."""
    found: list[FoundRow] = []
    for file in source.files:
        numbered = f'SELECT row_number() OVER () AS "#row", * FROM {source.scan([file])}'
        query = f'SELECT "#row", {source.sql(column)} FROM ({numbered}) WHERE {condition} ORDER BY 1 LIMIT {limit - len(found)}'
        found += [(file, row, value) for row, value in con.execute(query).fetchall()]
        if len(found) == limit:
            break
    return found


def describe_rows(found: list[FoundRow]) -> str:
    """`impressions.parquet rows 3 and 7`, for messages."""
    files = {file for file, _, _ in found}
    if len(files) == 1:
        return f"{found[0][0]}: rows {' and '.join(str(row) for _, row, _ in found)}"
    return " and ".join(f"{file}: row {row}" for file, row, _ in found)


def whole_number(source: Source, column: str, low: int, high: int, expected: str) -> tuple[str, list[Check]]:
    """A column of whole numbers in low..high without nulls, as BIGINT."""
    name, kind = source.sql(column), source.types[column]
    if kind in INTEGERS or kind == "BOOLEAN":
        bad, value = f"{name} IS NULL", f"TRY_CAST({name} AS BIGINT)"
    elif kind in FLOATS or kind.startswith("DECIMAL"):
        bad, value = f"{name} IS NULL OR NOT isfinite({name}::DOUBLE) OR {name} <> floor({name})", f"TRY_CAST({name} AS BIGINT)"
    elif kind == "VARCHAR":
        bad, value = f"{name} IS NULL OR NOT regexp_full_match({name}, {WHOLE})", f"TRY_CAST({name} AS BIGINT)"
    else:
        raise wrong_type(source, column, expected)
    return value, [Check(column, f"({bad} OR {value} IS NULL OR {value} NOT BETWEEN {low} AND {high})", expected)]


def number(source: Source, column: str, low: float, high: float, expected: str) -> tuple[str, list[Check]]:
    """A column of numbers in low..high or null, as DOUBLE."""
    name, kind = source.sql(column), source.types[column]
    if not (kind in INTEGERS | FLOATS | {"VARCHAR"} or kind.startswith("DECIMAL")):
        raise wrong_type(source, column, expected)
    value = f"TRY_CAST({name} AS DOUBLE)"
    bad = f"({name} IS NOT NULL AND ({value} IS NULL OR isnan({value}) OR {value} NOT BETWEEN {low} AND {high}))"
    return value, [Check(column, bad, expected)]


def text(source: Source, column: str) -> str:
    """A column of text, null as the empty text."""
    if source.types[column] != "VARCHAR":
        raise wrong_type(source, column, "text")
    return f"coalesce({source.sql(column)}, '')"


def identifier(source: Source, column: str, kind: IdKind, zero: ZeroId) -> tuple[str, list[Check]]:
    """A column of ids as BIGINT, null where there is none; `zero` says what 0 is, of all ids but those of requests."""
    value = _id_sql(source, column, kind)
    return value if column == "request_id" else zero_sql(value, zero), []


def attribute(source: Source, column: str, kind: IdKind, zero: ZeroId) -> tuple[str, list[Check]]:
    """A column of ids where null is 0, "none"; floats that are whole pass, since nulls turn integers into them."""
    name = source.sql(column)
    if source.types[column] in FLOATS:
        bad = f"({name} IS NOT NULL AND (NOT isfinite({name}) OR {name} <> floor({name})))"
        return f"coalesce({zero_sql(f'TRY_CAST({name} AS BIGINT)', zero)}, 0)", [Check(column, bad, "a whole number or null")]
    value, checks = identifier(source, column, kind, zero)
    return f"coalesce({value}, 0)", checks


def count_zeros(con: Connection, source: Source, columns: Sequence[str]) -> dict[str, int]:
    """Rows where an id is written as 0; those columns that have such, by `table.column`."""
    there = [column for column in columns if column in source]
    zeros = ", ".join(["count(*)", *(f"count(*) FILTER (WHERE {source.sql(c)}::VARCHAR IN ('0', '0.0'))" for c in there)])
    return {f"{source.name}.{c}": count for c, count in zip(there, _scan(con, source, zeros)[1:], strict=True) if count}


def id_kinds(con: Connection, sources: Sequence[Source], columns: Iterable[str]) -> dict[str, IdKind]:
    """How to read each id column: integers if every table has integers there, else hashed text in every table.

    CSV has no types: there a column is of integers if all its values are written as plain integers.
    """
    kinds: dict[str, IdKind] = {}
    for column in columns:
        kinds[column] = "integer" if all(_holds_integers(con, s, column) for s in sources if column in s) else "text"
    return kinds


def mixed_ids(con: Connection, sources: Sequence[Source], kinds: Mapping[str, IdKind]) -> dict[str, str]:
    """CSV columns of text of which most values are whole numbers: `table.column` -> the first row that is none, and how many.

    One mistyped id makes text of all.
    """
    found: dict[str, str] = {}
    for source in sources:
        columns = [column for column in source.columns if kinds.get(column) == "text"]
        if source.files[0].suffix == ".parquet" or not columns:
            continue
        odd = [f"count(*) FILTER (WHERE NOT {_plain_integer(source, c)}), count({source.sql(c)})" for c in columns]
        counts = _scan(con, source, ", ".join(odd))
        for column, count, ids in zip(columns, counts[::2], counts[1::2], strict=True):
            if 0 < 2 * count < ids:
                file, row, value = find_rows(con, source, column, f"NOT {_plain_integer(source, column)}", 1)[0]
                found[f"{source.name}.{column}"] = f"{file.name}, row {row}: {value!r}" + f" ({count - 1} more)" * (count > 1)
    return found


def wrong_type(source: Source, column: str, expected: str) -> RawLogError:
    return RawLogError(f"{source.files[0]}: column {source.columns[column]!r} is {source.types[column]}; expected {expected}")


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def open_duckdb(database: str = ":memory:", **options: Any) -> Connection:
    """DuckDB without progress bars of its own: it prints them to the standard output."""
    con = duckdb.connect(database, config=options)
    con.execute("SET enable_progress_bar = false")
    return con


def one_row(con: Connection, query: str) -> tuple:
    (row,) = con.execute(query).fetchall()
    return row


def _id_sql(source: Source, column: str, kind: IdKind) -> str:
    name, type_ = source.sql(column), source.types[column]
    if type_ not in INTEGERS | {"VARCHAR"}:
        raise wrong_type(source, column, "ids: 64-bit whole numbers or text (a float loses digits)")
    if kind == "text":
        return f"CAST(md5_number_lower(CAST({name} AS VARCHAR)) & {2**63 - 1} AS BIGINT)"
    if type_ == "UBIGINT":  # two's complement keeps all 64 bits
        return f"CAST(CASE WHEN {name} < {2**63} THEN {name}::HUGEINT ELSE {name}::HUGEINT - {2**64} END AS BIGINT)"
    return f"TRY_CAST({name} AS BIGINT)"


def _holds_integers(con: Connection, source: Source, column: str) -> bool:
    if source.types[column] != "VARCHAR":
        return True
    if source.files[0].suffix == ".parquet":
        return False
    return bool(_scan(con, source, f"bool_and({_plain_integer(source, column)}) IS NOT FALSE")[0])


def _plain_integer(source: Source, column: str) -> str:
    """Whether a value of a text column is null or written as a plain integer."""
    name = source.sql(column)
    return f"coalesce({name} IS NULL OR CAST(TRY_CAST({name} AS BIGINT) AS VARCHAR) = {name}, false)"


def _scan(con: Connection, source: Source, columns: str) -> tuple:
    """One row of aggregates over a table.

    Raises:
        RawLogError: a file that cannot be read to its end.
    """
    try:
        return one_row(con, f"SELECT {columns} FROM {source.scan()}")
    except (duckdb.InvalidInputException, duckdb.IOException, duckdb.ConversionException) as error:
        raise RawLogError(f"{source.label}: cannot be read: {' '.join(str(error).splitlines()[:3])}") from None


def scan_files(files: Iterable[Path]) -> str:
    """SQL that reads files of one kind, Parquet or CSV, as one table."""
    files = list(files)
    names = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    if files[0].suffix == ".parquet":
        # can_have_nan: Parquet leaves NaN out of a column's statistics, and DuckDB would skip the rows that we look for
        return f"read_parquet([{names}], union_by_name=true, can_have_nan=true)"
    # quoting is said, not found out: the head of a file need not show it
    return f"""read_csv([{names}], header=true, all_varchar=true, union_by_name=true, quote='"', escape='"')"""


def _describe(con: Connection, name: str, files: Sequence[Path]) -> dict[str, str]:
    try:
        rows = con.execute(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {scan_files(files)})").fetchall()
    except duckdb.Error as error:
        raise RawLogError(f"{name}: {files[0]} cannot be read: {str(error).splitlines()[0]}") from None
    return dict(rows)
