"""Parquet files of ours: every page has a checksum, which is compared when it is read, and complaints name the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

WRITTEN: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""How all of them are written."""


@contextlib.contextmanager
def readable(source: Path | str) -> Iterator[None]:
    """Names what could not be read.

    Raises:
        ValueError: Parquet complains, of a file that is cut short or damaged among others.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{source}: not a Parquet file, or a damaged one: {error}") from None


def open_parquet(path: Path, **options: Any) -> pq.ParquetFile:
    """A file to read row groups from, within `readable`."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True, **options)
    except KeyError as error:  # of `read_dictionary`
        raise pa.ArrowInvalid(f"there is no column {error}") from None


def read_parquet(path: Path, columns: Sequence[str] | None = None, row_group: int | None = None) -> pa.Table:
    """A file, or one row group of it.

    Raises:
        ValueError: it cannot be read, or has no such column; names it.
    """
    with readable(path), open_parquet(path) as file:
        for name in columns or ():
            if name not in file.schema_arrow.names:
                raise ValueError(f"{path}: column {name!r} is missing; found {', '.join(file.schema_arrow.names)}")
        chosen = list(columns) if columns is not None else None
        table = file.read(chosen) if row_group is None else file.read_row_group(row_group, chosen)
        table.validate(full=True)
    return table
