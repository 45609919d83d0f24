"""Vectors of items, once a log: a folder that `prepare` writes, and from which the reader and exported rankers take rows by id.

A row of samples names its items, and has no vectors of them. The folder has the ids of all items of the log, ascending, and a
matrix a column, NaN where an item has no vector, in files named `<column>.<dtype>[x<width>]`. Nothing of them is held in
memory, whatever their number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.config.columns import VectorColumn
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.columns import Column, declared_of

ITEM_VECTORS = "item_vectors"
"""Sub-folder of a prepared folder, and of an exported ranker."""
MAPPED = 2**28
"""Bytes. The rows of larger files are read one by one: of a map, what is looked at counts as the process's until the system wants
it back, and with random rows that is soon the whole file."""
_IDS = "item_id"


def item_vectors(data: DataConfig) -> list[tuple[Column, VectorColumn]]:
    """The columns that the folder has, those of candidates, with their settings."""
    return [(column, settings) for column, settings in declared_of(data, VectorColumn) if column.gathered]


class ItemVectors:
    """The vectors of the folder, read as they are asked for, from any thread; a copy in another process opens the files anew.

    Args:
        folder: as `prepare` writes it.
        widths: column -> numbers of a vector, of those that are wanted.

    Raises:
        ValueError: a file is missing, or is not as long as the ids say; names it.

    Example::

        vectors = ItemVectors.of(data, prepared / ITEM_VECTORS)
        vectors.rows("image", np.array([7, 7, 1]))  # (3, 64) float32, NaN where there is none
    """

    def __init__(self, folder: Path, widths: dict[str, int]) -> None:
        self._given = folder, widths
        self._ids = _Rows.open(folder, _IDS, None, ("int64",)).mapped()
        self._values = {name: _Rows.open(folder, name, width, ("float32", "float16")) for name, width in widths.items()}
        for name, values in self._values.items():
            if len(values) != len(self._ids):
                raise ValueError(f"{folder}: {len(values)} vectors of {name!r} for {len(self._ids)} items; copy the folder anew")

    @classmethod
    def of(cls, data: DataConfig, folder: Path) -> ItemVectors:
        """With all columns that a log declares."""
        return cls(folder, {column.key: settings.width for column, settings in item_vectors(data)})

    def rows(self, name: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of items.

        Args:
            name: of the column.
            ids: (n,), repeated or not.

        Returns:
            (n, width) float32, NaN where an item is not known or has none.
        """
        distinct, place_of = np.unique(ids, return_inverse=True)
        values = self._values[name]
        found = np.full((len(distinct), values.width or 1), np.nan, np.float32)
        if len(self._ids):
            place = np.minimum(np.searchsorted(self._ids, distinct), len(self._ids) - 1)
            known = self._ids[place] == distinct
            found[known] = values.take(place[known])
        return found[place_of]

    def filled(self, name: str, given: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors that came with items, and those of the folder where none did.

        Args:
            name: of the column.
            given: (n, width) float32, NaN where none came.
            ids: (n,) int64 of the items.

        Returns:
            (n, width) float32, NaN where there is none either way.
        """
        missing = np.isnan(given[:, 0])
        if missing.any():
            given = given.copy()
            given[missing] = self.rows(name, ids[missing])
        return given

    def __reduce__(self) -> tuple[Any, ...]:
        return ItemVectors, self._given


class _Rows:
    """A file of rows."""

    def __init__(self, path: Path, dtype: str, width: int | None) -> None:
        self.path, self.dtype, self.width = path, np.dtype(dtype), width
        self._row = self.dtype.itemsize * (width or 1)
        size = path.stat().st_size
        if size % self._row:
            raise ValueError(f"{path}: {size:,} bytes are no whole number of rows of {self._row}; copy it anew")
        self._length, self._file = size // self._row, path.open("rb", buffering=0)
        self._map = self.mapped() if size <= MAPPED else None

    @classmethod
    def open(cls, folder: Path, name: str, width: int | None, dtypes: Sequence[str]) -> _Rows:
        """A file by the name of its column, in the dtype that it is there with."""
        suffix = "" if width is None else f"x{width}"
        for dtype in dtypes:
            if (path := folder / f"{name}.{dtype}{suffix}").is_file():
                return cls(path, dtype, width)
        raise ValueError(
            f"{folder}: no file {name}.{dtypes[0]}{suffix}, which has the vectors of items; run `prectr prepare` again"
        )

    def __len__(self) -> int:
        return self._length

    def mapped(self) -> NDArray[Any]:
        """All of it, memory-mapped."""
        flat = np.memmap(self._file, self.dtype, mode="r") if self._length else np.zeros(0, self.dtype)
        return np.asarray(flat) if self.width is None else np.asarray(flat).reshape(-1, self.width)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(n, width) of some rows."""
        if self._map is not None:
            found: NDArray[Any] = self._map[rows]
            return found
        handle = self._file.fileno()
        read = b"".join([os.pread(handle, self._row, start) for start in (rows * self._row).tolist()])
        return np.frombuffer(read, self.dtype).reshape(len(rows), -1)
