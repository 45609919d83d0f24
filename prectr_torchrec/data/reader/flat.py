"""Arrow sample rows as flat numpy columns, shuffled and cut to length on the way; no Python loop over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.data.column_kinds import Texts
from prectr_torchrec.data.columns import Column
from prectr_torchrec.data.list_kinds import Bags


@dataclass
class Columns:
    """Rows of samples.

    Attributes:
        values: column -> (rows,) for request columns, (rows, K + 1) for counters by level, (events,) for those of lists.
        texts: the same of texts.
        bags: the same of lists of ids, and of their weights.
        offsets: list -> (rows + 1,) int64: row i owns the values `offsets[i]..offsets[i + 1]`.
    """

    num_rows: int
    values: dict[str, NDArray[Any]]
    texts: dict[str, Texts]
    offsets: dict[str, NDArray[np.int64]]
    bags: dict[str, Bags] = field(default_factory=dict)


def to_columns(
    tables: Sequence[pa.Table],
    sources: Sequence[str],
    columns: Sequence[Column],
    *,
    limits: dict[str, int],
    order: NDArray[np.int64] | None = None,
) -> Columns:
    """Turns sample rows into numpy columns.

    Args:
        tables: sample rows; text columns are strings or dictionaries of strings.
        sources: what each table is called in errors.
        columns: those wanted.
        limits: list -> events kept of a row, the latest ones.
        order: the rows wanted, in this order; None: all as they are.

    Raises:
        ValueError: a null where none may be, or lists of one family with unequal lengths.
    """
    num_rows = sum(table.num_rows for table in tables)
    result = Columns(num_rows if order is None else len(order), {}, {}, {})
    raw_offsets: dict[str, list[NDArray[np.int32]]] = {}
    gather: dict[str, NDArray[np.int64] | None] = {"request": order}
    for column in columns:
        chunks = [_one_chunk(table[column.name]) for table in tables]
        for chunk, source in zip(chunks, sources, strict=True):
            _check_nulls(chunk, column, source)
        if column.listed:
            offsets = [chunk.offsets.to_numpy() for chunk in chunks]
            chunks = [chunk.flatten() for chunk in chunks]
            if column.family not in raw_offsets:
                raw_offsets[column.family] = offsets
                joined = _gather(_join_offsets(offsets), order, limits.get(column.family))
                gather[column.family], result.offsets[column.family] = joined
            elif not all(map(np.array_equal, offsets, raw_offsets[column.family])):
                where, others = ", ".join(sources), f"the other {column.family}_* lists"
                raise ValueError(f"{where}: lists of column {column.name!r} differ in length from {others}")
        index, values = gather[column.family], column.kind.flat(chunks)
        if isinstance(values, Texts):
            result.texts[column.name] = values if index is None else values.take(index)
        elif isinstance(values, Bags):
            result.bags[column.name] = values if index is None else values.take(index)
        else:
            result.values[column.name] = values if index is None else values.take(index, axis=0)
    return result


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _check_nulls(chunk: pa.Array, column: Column, source: str) -> None:
    values = chunk.values if pa.types.is_list(chunk.type) else chunk
    nulls = (column.listed and chunk.null_count) or (not column.kind.nullable and (chunk.null_count or values.null_count))
    if nulls:
        raise ValueError(
            f"{source}: column {column.name!r} has nulls, which samples may not have there; run `prectr prepare` again"
        )


def _join_offsets(parts: list[NDArray[np.int32]]) -> NDArray[np.int64]:
    """Offsets into the concatenation of the parts' own values."""
    joined = [np.zeros(1, dtype=np.int64)]
    for part in parts:
        joined.append(part[1:].astype(np.int64) + (joined[-1][-1] - part[0]))
    return np.concatenate(joined)


def _gather(
    offsets: NDArray[np.int64], order: NDArray[np.int64] | None, limit: int | None
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """Index of the values that stay, and the offsets that they then have; no index where all stay in place."""
    ends = offsets[1:] if order is None else offsets[1:][order]
    lengths = np.diff(offsets) if order is None else np.diff(offsets)[order]
    longest = lengths.max(initial=0)
    if order is None and (limit is None or longest <= limit):
        return None, offsets
    if limit is not None:
        lengths = np.minimum(lengths, limit)
    kept = np.concatenate([[0], np.cumsum(lengths)])
    index = np.repeat(ends - kept[1:], lengths)
    index += np.arange(len(index))
    return index, kept
