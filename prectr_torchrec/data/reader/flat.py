"""Arrow sample rows as flat numpy columns, shuffled and cut to length on the way; no Python loop over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FAMILIES = ("history", "peer", "candidate")
"""Prefixes of the list columns; the lists of one family have equal lengths in each row."""
UNLABELLED = -1
"""Stands for null in `*_click`; null grades become NaN."""


@dataclass
class Texts:
    """A text column as a dictionary: row i is `distinct[index[i]]`."""

    distinct: list[str]
    index: NDArray[np.int32]


@dataclass
class Columns:
    """Rows of samples.

    Attributes:
        values: column -> (rows,) for request columns, (rows, K + 1) for per-level statistics, (events,) for the families'.
        texts: `query` (rows,), `candidate_title` (candidates,) and, where wanted, `history_title` (events,).
        offsets: family -> (rows + 1,) int64: row i owns the values `offsets[i]..offsets[i + 1]`.
    """

    num_rows: int
    values: dict[str, NDArray[Any]]
    texts: dict[str, Texts]
    offsets: dict[str, NDArray[np.int64]]


def family_of(column: str) -> str | None:
    """`history`, `peer` or `candidate` for the list columns, else None."""
    prefix = column.partition("_")[0]
    return prefix if prefix in FAMILIES else None


def to_columns(
    tables: Sequence[pa.Table],
    sources: Sequence[str],
    names: Sequence[str],
    *,
    limits: dict[str, int],
    order: NDArray[np.int64] | None = None,
) -> Columns:
    """Turns sample rows into numpy columns.

    Args:
        tables: sample rows; text columns are strings or dictionaries of strings.
        sources: what each table is called in errors.
        names: the columns wanted.
        limits: family -> events kept of a row, the latest ones.
        order: the rows wanted, in this order; None: all as they are.

    Raises:
        ValueError: a null where none may be, or lists of one family with unequal lengths.
    """
    num_rows = sum(table.num_rows for table in tables)
    result = Columns(num_rows if order is None else len(order), {}, {}, {})
    raw_offsets: dict[str, list[NDArray[np.int32]]] = {}
    gather: dict[str | None, NDArray[np.int64] | None] = {None: order}
    for name in names:
        family = family_of(name)
        chunks = [_one_chunk(table[name]) for table in tables]
        for chunk, source in zip(chunks, sources, strict=True):
            _check_nulls(chunk, name, source)
        if pa.types.is_list(chunks[0].type):
            offsets = [chunk.offsets.to_numpy() for chunk in chunks]
            chunks = [chunk.flatten() for chunk in chunks]
            if family is None:
                values = np.concatenate([_to_numpy(chunk) for chunk in chunks]).reshape(num_rows, -1)
                result.values[name] = values if order is None else values.take(order, axis=0)
                continue
            if family not in raw_offsets:
                raw_offsets[family] = offsets
                gather[family], result.offsets[family] = _gather(_join_offsets(offsets), order, limits.get(family))
            elif not all(map(np.array_equal, offsets, raw_offsets[family])):
                where = ", ".join(sources)
                raise ValueError(f"{where}: lists of column {name!r} differ in length from the other {family}_* lists")
        index = gather[family]
        if pa.types.is_dictionary(chunks[0].type) or pa.types.is_string(chunks[0].type):
            result.texts[name] = _to_texts(chunks, index)
        else:
            values = np.concatenate([_to_numpy(chunk) for chunk in chunks])
            result.values[name] = values if index is None else values.take(index)
    return result


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _check_nulls(chunk: pa.Array, name: str, source: str) -> None:
    optional = name.endswith(("_relevance", "_click"))
    if chunk.null_count or (pa.types.is_list(chunk.type) and not optional and chunk.values.null_count):
        raise ValueError(f"{source}: column {name!r} has nulls, which samples may not have there; run `prectr prepare` again")


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


def _to_numpy(values: pa.Array) -> NDArray[Any]:
    if values.null_count and pa.types.is_integer(values.type):
        values = values.fill_null(UNLABELLED)
    return values.to_numpy(zero_copy_only=False)


def _to_texts(chunks: list[pa.Array], index: NDArray[np.int64] | None) -> Texts:
    encoded = [chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode() for chunk in chunks]
    starts = np.cumsum([0, *(len(chunk.dictionary) for chunk in encoded)])
    places = np.concatenate([chunk.indices.to_numpy() + start for chunk, start in zip(encoded, starts, strict=False)])
    unified = pa.concat_arrays([chunk.dictionary for chunk in encoded]).dictionary_encode()
    places = unified.indices.to_numpy().take(places if index is None else places.take(index))
    return Texts(unified.dictionary.to_pylist(), places)
