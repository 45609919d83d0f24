"""Lists of ids in requests, and the weights of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prectr_torchrec.data.column_kinds import LARGEST
from prectr_torchrec.data.list_kinds import MOST_IDS, Weights
from prectr_torchrec.serving.fields import Field, RequestError


def fit_weights(arrays: dict[str, pa.Array], fields: Iterable[Field], place: Callable[[Field, int], str]) -> None:
    """Refuses weights that do not fit their ids; where there are none, each id counts 1.

    Args:
        arrays: lists by field, of requests or of the rows of their lists; weights change.
        fields: all of a family.
        place: names the n-th value of a field.
    """
    fields = list(fields)
    for field in fields:
        if isinstance(field.column.kind, Weights):
            table, of = field.column.source.table, field.column.kind.of
            ids = next(f for f in fields if f.column.source[:2] == (table, of))
            arrays[field.name] = _fitted(arrays[field.name], _lengths(arrays[ids.name]), ids.key, lambda i: place(field, i))  # noqa: B023


def _fitted(weights: pa.Array, wanted: NDArray[np.int64], of: str, place: Callable[[int], str]) -> pa.Array:
    lengths = _lengths(weights)
    without = (lengths == 0) & (wanted > 0)
    if (wrong := np.flatnonzero((lengths != wanted) & ~without)).size:
        first = int(wrong[0])
        raise RequestError(place(first), f"{lengths[first]} weights", f"{wanted[first]}, one for each of {of}")
    if not without.any():
        return weights
    values = np.ones(int(wanted.sum()), np.float32)
    values[np.repeat(~without, wanted)] = weights.flatten().to_numpy(zero_copy_only=False)
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(wanted)]), pa.int32()), pa.array(values))


def bad_lists(lists: pa.Array, *, weights: bool) -> NDArray[np.bool_]:
    """(n,) which lists of an Arrow column are too long, or hold what is no weight."""
    lengths = _lengths(lists)
    bad = lengths > MOST_IDS
    if weights:
        values = lists.flatten().to_numpy(zero_copy_only=False)
        bad[np.repeat(np.arange(len(lists)), lengths)[~((values >= 0) & (values <= LARGEST))]] = True
    return bad


def _lengths(lists: pa.Array) -> NDArray[np.int64]:
    found: NDArray[np.int64] = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    return found
