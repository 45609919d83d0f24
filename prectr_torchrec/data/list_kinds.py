"""The kinds of columns with a list of ids in each row, such as tags, and of the weights of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.config.data import ZeroId
from prectr_torchrec.data import json_values as json
from prectr_torchrec.data.column_kinds import LARGEST, Kind
from prectr_torchrec.data.json_values import JsonField
from prectr_torchrec.data.raw.list_readings import ids, paths, weights
from prectr_torchrec.data.raw.readings import IdKind, Reading

MOST_IDS = 1000
"""Of a row."""
MOST_LEVELS = 50
"""Of a path."""


@dataclass
class Bags:
    """Lists of n rows: row i has the values `offsets[i]..offsets[i + 1]`."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Bags:
        """Those of some rows."""
        starts, lengths = self.offsets[rows], np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        index = np.repeat(starts - offsets[:-1], lengths)
        index += np.arange(len(index))
        return Bags(self.values[index], offsets)

    def slice(self, start: int, stop: int) -> Bags:
        """Rows `start..stop`."""
        offsets = self.offsets[start : stop + 1]
        return Bags(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def shares(self) -> Bags:
        """Weights as shares of the sum of their row; nothing where that is nothing."""
        lists = np.repeat(np.arange(len(self.offsets) - 1), self.lengths)
        sums = np.bincount(lists, self.values.astype(np.float64), minlength=len(self.offsets) - 1)[lists]
        return Bags(np.divide(self.values, sums, out=np.zeros(len(sums)), where=sums > 0).astype(np.float32), self.offsets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,)"""
        return np.diff(self.offsets)


class _Lists(Kind):
    """Lists in each row, empty where there is nothing."""

    def to_arrow(self, values: Any) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(values.offsets, pa.int32()), pa.array(values.values)).cast(self.arrow)

    def flat(self, chunks: Sequence[pa.Array]) -> Any:
        values = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks])
        lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks])
        return Bags(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


@dataclass(frozen=True)
class Ids(_Lists):
    """Lists of 64-bit ids.

    Attributes:
        written: how the log writes them; `either` where that is not known.
        zero: what the id 0 is in the log.
        separator: what stands between them where they are text.
    """

    declared_as = "ids"
    written: IdKind | Literal["either"] = "either"
    zero: ZeroId = "none"
    separator: str | None = None

    @property
    def missing(self) -> str:
        return "[]::BIGINT[]"

    @property
    def arrow(self) -> pa.DataType:
        return pa.list_(pa.int64())

    def json(self) -> JsonField:
        return json.ids_field(self.written, self.zero, MOST_IDS)

    def raw(self) -> Reading:
        assert self.written != "either"
        return ids(self.written, self.zero, self.separator, MOST_IDS)


@dataclass(frozen=True)
class Paths(Ids):
    """Lists of the ids of each level of a path, from the top: the id of a level is that of the path down to it."""

    declared_as = "path"

    def json(self) -> JsonField:
        return json.path_field(self.separator or "", self.zero, MOST_LEVELS)

    def raw(self) -> Reading:
        return paths(self.separator or "", self.zero, MOST_LEVELS)


@dataclass(frozen=True)
class Weights(_Lists):
    """Lists of numbers that are not negative, one for each id of another column.

    Attributes:
        of: the column of ids, as the log calls it.
        separator: what stands between them where they are text.
    """

    declared_as = "weights"
    of: str
    separator: str | None = None

    @property
    def missing(self) -> str:
        return "[]::FLOAT[]"

    @property
    def arrow(self) -> pa.DataType:
        return pa.list_(pa.float32())

    def json(self) -> JsonField:
        return json.weights_field(self.of, MOST_IDS, LARGEST)

    def raw(self) -> Reading:
        return weights(self.of, self.separator, LARGEST)
