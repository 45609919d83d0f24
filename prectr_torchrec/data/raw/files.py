"""The files of a raw table: which they are, what columns they have, and SQL that reads them.

Names and contents mean nothing but themselves: no partitions in the names of folders, no patterns in those of files, and no
guesses at a CSV's dialect beyond its header.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from prectr_torchrec.config.data import RawTable
from prectr_torchrec.system.paths import literal, local_path

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
DELIMITERS = (",", "\t", ";", "|")
MAX_TEXT = 2**16
"""Bytes of a text, more than any title or query has."""
_HEAD = 2**20
"""Characters in which a CSV's header ends."""
_FOREIGN = {"_delta_log": "a Delta table", ".hoodie": "a Hudi table"}


class RawLogError(ValueError):
    """A raw log that cannot be prepared; the message names the file, the column and the row, and what would be right."""


@dataclass(frozen=True)
class Dialect:
    delimiter: str
    quote: str | None
    encoding: str
    blank_lines: int
    """In front of the header."""


@dataclass(frozen=True)
class Part:
    """Files of a raw table that have the same columns.

    Args:
        files: Parquet or CSV, sorted.
        columns: name and DuckDB type of every column, in the files' order; everything is VARCHAR in CSV.
        dialect: of CSV.
    """

    files: tuple[Path, ...]
    columns: tuple[tuple[str, str], ...]
    dialect: Dialect | None

    def scan(self, files: Iterable[Path] | None = None) -> str:
        """SQL of the rows. The columns are `c0`, `c1`, ...: by their own names they could mean something else to DuckDB."""
        files = self.files if files is None else files
        names = [f"c{number}" for number in range(len(self.columns))]
        if self.dialect is None:
            return f"{scan_parquet(files)} AS t({', '.join(names)})"
        return _scan_csv(files, names, self.dialect)


def find_files(name: str, table: RawTable, folder: Path, *, optional: bool = False) -> tuple[Path, ...]:
    """The files of a raw table, sorted; none is an error unless optional. A folder stands for the files in it.

    Raises:
        RawLogError: no such file, a file that is neither Parquet nor CSV, or both kinds.
    """
    pattern = folder / local_path(table.path, name)
    files = tuple(sorted({file for found in _matches(pattern) for file in _files_of(name, found)}))
    if not files and not optional:
        raise RawLogError(f"{name}: there is no file {pattern}; set data.raw.{name}.path to a file, folder or glob that exists")
    for file in files:
        if file.exists() and not file.is_file():
            raise RawLogError(f"{name}: {file} is a pipe or a device, which cannot be read twice; write it to a file")
        if not file.name.endswith(SUFFIXES):
            raise RawLogError(f"{name}: {file} is neither Parquet nor CSV; its name must end in one of {', '.join(SUFFIXES)}")
    if len({file.suffix == ".parquet" for file in files}) > 1:
        raise RawLogError(f"{name}: {pattern} matches Parquet and CSV files; keep to one of the two")
    return files


def given_files(name: str, pattern: Path) -> tuple[Path, ...]:
    """The files of a path or glob that is no setting but an argument.

    Raises:
        RawLogError: as of `find_files`.
    """
    files = find_files(name, RawTable(path=str(pattern.absolute())), Path(), optional=True)
    if not files:
        raise RawLogError(f"{name}: there is no file {pattern}")
    return files


def open_part(con: duckdb.DuckDBPyConnection, name: str, table: RawTable, file: Path, wanted: Sequence[str]) -> Part | None:
    """One file with its columns; None: an empty part of a CSV, without a header.

    Args:
        con: any connection.
        name: the table's name under `data.raw`.
        table: the dialect of its CSV files.
        file: to look into.
        wanted: the file's columns that will be read; the delimiter of a CSV is the one that finds most of them.

    Raises:
        RawLogError: a file that cannot be read.
    """
    if file.suffix == ".parquet":
        return Part((file,), _parquet_columns(con, name, file, wanted), None)
    header, dialect = _read_header(name, table, file, wanted)
    return Part((file,), tuple((column, "VARCHAR") for column in header), dialect) if header else None


def join_parts(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Files with the same columns together, so that few scans read many files."""
    together: dict[tuple[object, ...], list[Path]] = {}
    for part in parts:
        together.setdefault((part.columns, part.dialect), []).extend(part.files)
    return tuple(Part(tuple(files), columns, dialect) for (columns, dialect), files in cast(dict, together).items())


def scan_parquet(files: Iterable[Path], *options: str) -> str:
    """SQL that reads Parquet files of the same columns."""
    # can_have_nan: Parquet leaves NaN out of a column's statistics, and DuckDB would skip the rows that we look for
    return f"read_parquet({', '.join([f'[{_list(files)}]', 'hive_partitioning=false', 'can_have_nan=true', *options])})"


def unreadable(part: Part, file: Path, error: Exception) -> str:
    """Why a file cannot be read to its end: the row where that is known, else DuckDB's words."""
    if part.dialect is not None and (reason := _broken_row(file, part.dialect, len(part.columns))):
        return reason
    return " ".join(" ".join(str(error).splitlines()[:3]).split())[:300]


def _matches(pattern: Path) -> list[Path]:
    """What a path or glob stands for. Its head is taken as it is where that exists, so that `[` there is no pattern."""
    head, tail = Path(pattern.anchor), [*pattern.relative_to(pattern.anchor).parts]
    while tail and (head / tail[0]).exists():
        head /= tail.pop(0)
    if not tail:
        return [head]
    found = (Path(path) for path in glob.glob(str(Path(glob.escape(str(head)), *tail)), recursive=True))
    return [path for path in found if not path.name.startswith("_")]


def _files_of(name: str, found: Path) -> Iterator[Path]:
    """A file itself; the files in a folder but those that begin with `_` or `.`, as Spark's marks do."""
    if not found.is_dir():
        yield found
        return
    for mark, kind in _FOREIGN.items():
        if (found / mark).exists():
            raise RawLogError(f"{name}: {found} is {kind}, of which some files may be void; write it out as plain Parquet")
    for path in found.rglob("*"):
        if path.is_file() and not any(part.startswith(("_", ".")) for part in path.relative_to(found).parts):
            yield path


def _list(files: Iterable[Path]) -> str:
    return ", ".join("'" + literal(file).replace("'", "''") + "'" for file in files)


def _scan_csv(files: Iterable[Path], names: list[str], dialect: Dialect) -> str:
    def word(value: str | None) -> str:
        return "'" + (value or "").replace("'", "''") + "'"

    columns = ", ".join(f"'{name}': 'VARCHAR'" for name in names)
    return (
        f"read_csv([{_list(files)}], auto_detect=false, header=true, hive_partitioning=false, strict_mode=true, comment='', "
        f"columns={{{columns}}}, delim={word(dialect.delimiter)}, quote={word(dialect.quote)}, escape={word(dialect.quote)}, "
        f"encoding={word(dialect.encoding)}, skip={dialect.blank_lines})"
    )


def _parquet_columns(con: duckdb.DuckDBPyConnection, name: str, file: Path, wanted: Sequence[str]) -> tuple[tuple[str, str], ...]:
    try:
        schema = pq.read_metadata(file).schema.to_arrow_schema()
        names = schema.names
        scan = Part((file,), tuple((column, "") for column in names), None).scan()
        types = [type_ for _, type_ in con.execute(f"SELECT column_name, column_type FROM (DESCRIBE FROM {scan})").fetchall()]
        _refuse_long_texts(con, file, wanted)
    except RawLogError:
        raise
    except (duckdb.Error, pa.ArrowException, OSError, ValueError) as error:
        raise RawLogError(f"{name}: {file} cannot be read: {str(error).splitlines()[0]}") from None
    types = ["HALF" if pa.types.is_float16(field.type) else type_ for field, type_ in zip(schema, types, strict=True)]
    return tuple((column, type_.strip('"')) for column, type_ in zip(names, types, strict=True))


def _refuse_long_texts(con: duckdb.DuckDBPyConnection, file: Path, wanted: Sequence[str]) -> None:
    """A few kilobytes can hold a text of gigabytes: what must be too long by the sizes in the footer is not unpacked at all.

    DuckDB reads the footer: of a damaged one PyArrow ends the process where it looks at a column.
    """
    columns = "row_group_id, row_group_num_rows, path_in_schema, total_uncompressed_size"
    first, last_group, last_rows = 1, 0, 0
    for group, rows, column, size in con.execute(
        f"SELECT {columns} FROM parquet_metadata([{_list([file])}]) ORDER BY 1"
    ).fetchall():
        if group != last_group:
            first, last_group = first + last_rows, group
        if column in wanted and size > (rows + 1) * (MAX_TEXT + 64):
            raise RawLogError(
                f"{file}: column {column!r}, rows {first} to {first + rows - 1} take {size:,} bytes; expected at most "
                f"{MAX_TEXT:,} bytes a value"
            )
        last_rows = rows


def _read_header(name: str, table: RawTable, file: Path, wanted: Sequence[str]) -> tuple[list[str], Dialect]:
    try:
        with _open_text(file, table.encoding, errors="replace") as stream:
            head = stream.read(_HEAD)
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise RawLogError(f"{name}: {file} cannot be read: {error}") from None
    if "\0" in head.partition("\n")[0]:
        raise RawLogError(f"{name}: {file} is not {table.encoding}; where it is of another one, set data.raw.{name}.encoding")
    best: tuple[list[str], Dialect] = [], Dialect(",", table.quote, table.encoding, 0)
    for delimiter in [sign for sign in DELIMITERS if sign != table.quote] if table.delimiter is None else [table.delimiter]:
        reader = _csv_rows(io.StringIO(head, newline=""), Dialect(delimiter, table.quote, table.encoding, 0), strict=False)
        blank_lines = 0
        for row in reader:
            if row:
                break
            blank_lines += 1
        else:
            continue
        if not best[0] or _fitness(row, wanted) > _fitness(best[0], wanted):
            best = row, Dialect(delimiter, table.quote, table.encoding, blank_lines)
    return best


def _fitness(header: list[str], wanted: Sequence[str]) -> tuple[int, int]:
    return len(set(header) & set(wanted)), len(header)


def _open_text(file: Path, encoding: str, errors: str = "strict") -> TextIO:
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    binary: Any = gzip.GzipFile(file) if file.suffix == ".gz" else file.open("rb")
    return io.TextIOWrapper(binary, encoding, errors, newline="")


def _csv_rows(stream: TextIO, dialect: Dialect, *, strict: bool) -> Iterator[list[str]]:
    if dialect.quote is None:
        return csv.reader(stream, delimiter=dialect.delimiter, quoting=csv.QUOTE_NONE, strict=strict)
    return csv.reader(stream, delimiter=dialect.delimiter, quotechar=dialect.quote, strict=strict)


def _broken_row(file: Path, dialect: Dialect, width: int) -> str | None:
    """The first row that cannot be read, and why."""
    row = 0
    try:
        with _open_text(file, dialect.encoding, errors="surrogateescape") as stream:
            rows = (fields for fields in _csv_rows(stream, dialect, strict=True) if fields)
            next(rows)
            for row, fields in enumerate(rows, 1):
                if re.search("[\ud800-\udfff]", "".join(fields)):
                    return f"row {row} is not {dialect.encoding}; where all rows are of another, set the encoding of this table"
                if len(fields) != width and not (len(fields) == width + 1 and not fields[-1]):
                    return f"row {row} has {len(fields)} fields, the header has {width}"
    except UnicodeError as error:
        return f"it is not {dialect.encoding} ({error}); set the encoding of this table"
    except csv.Error as error:
        return f"row {row + 1}: {'a quote is never closed' if 'end of data' in str(error) else error}"
    except (OSError, EOFError, zlib.error) as error:
        return f"after row {row}: {error}"
    with _open_text(file, dialect.encoding, errors="replace") as stream:
        head = stream.read(_HEAD)
    if "\r\n" in head and "\n" in head.replace("\r\n", ""):
        return "lines end in CR LF here and in LF there; write all of them alike"
    return None
