"""Sorted events on disk and what came strictly before a moment in them.

An `EventOrder` holds events sorted by (keys..., timestamp) as memory-mapped columns, so the past of a key is a contiguous
range, found by bisection, and every counter over it is a difference of two running totals. Nothing here grows with the log
but files: only the pages that are looked at are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.data.column_kinds import vector_rows
from prectr_torchrec.data.levels import unpack_levels
from prectr_torchrec.data.prepare.examination import position_weights, weights_at

BATCH_ROWS = 65536
SKIP_NONE = np.iinfo(np.int64).min
"""No id, for `EventOrder.latest`."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def write_columns(con: duckdb.DuckDBPyConnection, query: str, folder: Path, *, dtypes: Mapping[str, str] | None = None) -> int:
    """Streams the result of a query into one file a column and returns the number of rows.

    `dtypes`: of columns that are written in another one than DuckDB has.

    A column `<name>#length` is written as its running total `<name>_ends`; lists become `<name>_values`, one after another, and
    `<name>_ends`, and so do texts, as bytes.
    """
    folder.mkdir(parents=True)
    with _ColumnFiles(folder) as files:
        return sum(files.append(_cast(batch, dtypes or {})) for batch in _batches(con, query))


def open_columns(folder: Path) -> dict[str, NDArray[Any]]:
    """The columns of `write_columns` as read-only memory maps."""
    columns = {}
    for path in sorted(folder.glob("*.*")):
        dtype, _, width = path.suffix[1:].partition("x")
        shape = (-1, int(width)) if width else (-1,)
        flat = np.asarray(np.memmap(path, dtype=dtype, mode="r")) if path.stat().st_size else np.zeros(0, dtype)
        columns[path.stem] = flat.reshape(shape)
    return columns


def write_order(
    con: duckdb.DuckDBPyConnection,
    folder: Path,
    *,
    table: str,
    columns: Sequence[str],
    keys: Sequence[str],
    runs: Sequence[str] = (),
    counts: str = "",
    levels: int = 0,
    examination: Sequence[float] = (1.0,),
    time: str = "timestamp",
) -> None:
    """Writes events sorted by `keys` and `time`; ties by timestamp, request, position, item.

    Args:
        con: connection with the tables of the log.
        folder: where to write; must not exist.
        table: the events, with or without a WHERE.
        columns: what is to be looked up, keys and `time` included.
        keys: columns whose past is asked for.
        runs: columns of which `EventOrder.latest` may skip a value.
        counts: `level`: running totals of shown, clicked and examined events by level, K + 1 each, predicted levels counting by
            their probability; `all`: one of each; "": none.
        levels: K.
        examination: of positions 1, 2, ...
        time: column of the moments that the past ends with.
    """
    folder.mkdir(parents=True)
    bins = {"level": levels + 1, "all": 1, "": 0}[counts]
    order = ", ".join(dict.fromkeys([*keys, time, "timestamp", "request_id", "position", "item"]))
    run_starts = {name: _RunStarts() for name in runs}
    weights = position_weights(examination)
    total = np.zeros(3 * bins)
    with _ColumnFiles(folder) as files:
        if bins:
            files.write("totals", total[None])
        selected = ", ".join(dict.fromkeys([*columns, "click", "level", "position", "predicted"]))
        for batch in _batches(con, f"SELECT {selected} FROM {table} ORDER BY {order}"):
            for name, state in run_starts.items():
                files.write(f"{name}_run", state.starts([batch[key] for key in (*keys, name)]))
            if bins and len(batch["level"]):
                share = level_shares(batch["level"], batch["predicted"], levels) if counts == "level" else np.ones((1, 1))
                weight = weights_at(weights, batch["position"])
                totals = total + _running_totals(share, batch["click"], weight)
                files.write("totals", totals)
                total = totals[-1]
            files.append({name: batch[name] for name in columns})


@dataclass(frozen=True)
class EventOrder:
    """Events sorted by (keys..., time).

    Args:
        keys: columns of shape (N,).
        columns: all columns of `write_order`: (N,); `totals` (N + 1, 3 * levels), float64.
        time: name of the column of the moments.
    """

    keys: tuple[NDArray[Any], ...]
    columns: dict[str, NDArray[Any]]
    time: str = "timestamp"

    @classmethod
    def open(cls, folder: Path, *keys: str, time: str = "timestamp") -> EventOrder:
        columns = open_columns(folder)
        return cls(tuple(columns[key] for key in keys), columns, time)

    def before(self, timestamp: Ints, *keys: NDArray[Any]) -> tuple[Ints, Ints]:
        """Ranges [start, stop) of the events of each key that are strictly older than the timestamp; all arrays (R,)."""
        sides = (*self.keys, self.columns[self.time])
        return _bisect(sides[:-1], keys), _bisect(sides, (*keys, timestamp))

    def counts(self, start: Ints, stop: Ints) -> NDArray[np.float64]:
        """Shown, clicked and examined events by level within the ranges: (3, R, levels)."""
        totals = self.columns["totals"]
        return np.stack(np.split(totals[stop] - totals[start], 3, axis=1))

    def latest(self, start: Ints, stop: Ints, limit: Ints, width: int, skip: dict[str, Ints]) -> Ints:
        """The latest events of each range, those with a skipped value left out.

        Args:
            start, stop: (R,) ranges from `before`.
            limit: (R,) events wanted, at most `width`.
            width: columns of the result.
            skip: column named in `runs` -> (R,) the value to leave out, `SKIP_NONE`: none. A run of it is
                jumped over in one step, so that the time does not depend on how often it occurs.

        Returns:
            (R, width) positions, newest first, -1 where there are no more.
        """
        found = np.full((len(start), width), -1, np.int64)
        taken = np.zeros(len(start), np.int64)
        cursor = stop - 1
        active = np.flatnonzero((cursor >= start) & (limit > 0))
        while len(active):
            at = cursor[active]
            step = at.copy()
            for name, value in skip.items():
                same = self.columns[name][at] == value[active]
                step = np.where(same, np.minimum(step, self.columns[f"{name}_run"][at] - 1), step)
            take = step == at
            rows = active[take]
            found[rows, taken[rows]] = at[take]
            taken[rows] += 1
            cursor[active] = np.where(take, at - 1, step)
            active = active[(cursor[active] >= start[active]) & (taken[active] < limit[active])]
        return found


def expand(start: Ints, stop: Ints) -> Ints:
    """All positions of the ranges [start, stop), one after another."""
    lengths = stop - start
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - (ends - lengths), lengths)


def lists_at(columns: Mapping[str, NDArray[Any]], name: str, rows: Ints) -> tuple[Ints, NDArray[Any]]:
    """The lists of some rows as (offsets (R + 1,), values); of texts, values are UTF-8 bytes."""
    ends = columns[f"{name}_ends"]
    stop = ends[rows]
    start = np.where(rows > 0, ends[rows - 1], 0)
    return np.concatenate([[0], np.cumsum(stop - start)]), columns[f"{name}_values"][expand(start, stop)]


def slice_columns(columns: Mapping[str, NDArray[Any]], start: int, stop: int) -> dict[str, NDArray[Any]]:
    """Rows `start..stop` of all columns."""
    found = {name: np.asarray(column[start:stop]) for name, column in columns.items() if not name.endswith("_values")}
    for name in (name.removesuffix("_values") for name in columns if name.endswith("_values")):
        ends = columns[f"{name}_ends"]
        first, last = (int(ends[row - 1]) if row else 0 for row in (start, stop))
        found |= {f"{name}_values": np.asarray(columns[f"{name}_values"][first:last]), f"{name}_ends": ends[start:stop] - first}
    return found


def _bisect(columns: tuple[NDArray[Any], ...], values: tuple[NDArray[Any], ...]) -> Ints:
    """The first position whose row (columns..., lexicographic) is not below the values; vectorised over the values."""
    low = np.zeros(len(values[0]), np.int64)
    high = np.full(len(values[0]), len(columns[0]), np.int64)
    for _ in range(len(columns[0]).bit_length()):
        middle = np.minimum((low + high) // 2, max(len(columns[0]) - 1, 0))
        below = np.zeros(len(low), bool)
        for column, value in zip(reversed(columns), reversed(values), strict=True):
            at = column[middle]
            below = (at < value) | ((at == value) & below)
        open_ = low < high
        low = np.where(open_ & below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)
    return low


def level_shares(level: NDArray[np.int8], predicted: Ints, levels: int) -> Floats:
    """(N, K + 1): how much of each event is of each level; a grade wins over a prediction; index 0: neither."""
    shares = np.zeros((len(level), levels + 1))
    shares[:, 1:] = unpack_levels(np.where(level > 0, 0, predicted), levels)
    rows = np.flatnonzero((level > 0) | (predicted == 0))
    shares[rows, level[rows]] = 1
    return shares


def _running_totals(share: Floats, click: NDArray[np.int8], weight: Floats) -> Floats:
    """(N, 3 * bins): events up to and with each one by their (N, bins) shares, then the clicked ones, then all by weight."""
    return np.cumsum(np.concatenate([share * count[:, None] for count in (np.ones(len(click)), click, weight)], axis=1), axis=0)


class _RunStarts:
    """Positions where the current run of equal rows began, over batches."""

    def __init__(self) -> None:
        self.seen = 0
        self.start = 0
        self.last: tuple[Any, ...] | None = None

    def starts(self, columns: list[NDArray[Any]]) -> Ints:
        length = len(columns[0])
        if not length:
            return np.zeros(0, np.int64)
        new = np.zeros(length, bool)
        for column in columns:
            new[1:] |= column[1:] != column[:-1]
        new[0] = self.last != tuple(column[0] for column in columns)
        starts = np.maximum.accumulate(np.where(new, np.arange(self.seen, self.seen + length), self.start))
        self.seen, self.start, self.last = self.seen + length, int(starts[-1]), tuple(column[-1] for column in columns)
        return starts


class _ColumnFiles:
    """Appends arrays to files named `<column>.<dtype>[x<width>]`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Any] = {}
        self.ends: dict[str, int] = {}

    def __enter__(self) -> _ColumnFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def append(self, batch: dict[str, NDArray[Any]]) -> int:
        length = len(next(iter(batch.values())))
        for name, values in batch.items():
            if name.endswith("#length"):
                name = name.removesuffix("#length") + "_ends"
                values = np.cumsum(values) + self.ends.get(name, 0)
                self.ends[name] = int(values[-1]) if len(values) else 0
            self.write(name, values)
        return length

    def write(self, name: str, values: NDArray[Any]) -> None:
        if name not in self.files:
            width = f"x{values.shape[1]}" if values.ndim == 2 else ""
            self.files[name] = (self.folder / f"{name}.{values.dtype.name}{width}").open("wb")
        self.files[name].write(np.ascontiguousarray(values).data)


def _batches(con: duckdb.DuckDBPyConnection, query: str) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches of a result as numpy columns; an empty result is one empty batch, so that its columns are known."""
    reader = con.sql(query).to_arrow_reader(BATCH_ROWS)
    rows = 0
    for batch in reader:
        if batch.num_rows:
            rows += batch.num_rows
            yield _to_numpy(batch)
    if not rows:
        yield _to_numpy(pa.RecordBatch.from_arrays([pa.array([], field.type) for field in reader.schema], schema=reader.schema))


def _cast(batch: dict[str, NDArray[Any]], dtypes: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    return batch | {name: batch[name].astype(dtype) for name, dtype in dtypes.items()}


def _to_numpy(batch: pa.RecordBatch) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_string(array.type):
            array = array.cast(pa.large_string())
            offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
            data = np.frombuffer(array.buffers()[2] or b"", np.uint8)
            columns[f"{name}_values"] = data[offsets[0] : offsets[-1]]
            columns[f"{name}#length"] = np.diff(offsets)
        elif pa.types.is_list(array.type):
            columns[f"{name}_values"] = array.flatten().to_numpy(zero_copy_only=False)
            columns[f"{name}#length"] = np.diff(array.offsets.to_numpy())
        elif pa.types.is_fixed_size_list(array.type):
            columns[name] = vector_rows(array)
        else:
            columns[name] = array.to_numpy(zero_copy_only=False)
    return columns
