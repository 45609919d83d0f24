"""The kinds of columns that no log declares: preparation counts them, a teacher predicts them, or a ranker sums them up."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.data import json_values as json
from prectr_torchrec.data.column_kinds import Kind, Number, View
from prectr_torchrec.data.json_values import JsonField
from prectr_torchrec.data.levels import unpack_levels
from prectr_torchrec.data.raw.readings import Reading, number


@dataclass(frozen=True)
class Distribution(Kind):
    """Predicted distributions over K levels, packed as of `pack_levels`; 0: none. A grade beside them, `unless`, wins."""

    num_levels: int
    unless: str

    @property
    def beside(self) -> tuple[str, ...]:
        return (self.unless,)

    @property
    def arrow(self) -> pa.DataType:
        return pa.int64()

    def json(self) -> JsonField:
        return json.distribution_field(self.num_levels)

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.float32, (self.num_levels,))}

    def batched(self, key: str, flat: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        graded = ~np.isnan(flat[self.unless])
        return {key: unpack_levels(np.where(graded, 0, flat[key]), self.num_levels)}


@dataclass(frozen=True)
class SampleWeight(Number):
    """What each candidate counts in training, from 0 on."""

    def raw(self) -> Reading:
        return number(0, json.MOST, f"a weight, a number from 0 to {json.MOST}", nullable=False)

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.float32)}


class Row(Kind):
    """`width` numbers a row."""

    @property
    @abstractmethod
    def width(self) -> int: ...

    @property
    def arrow(self) -> pa.DataType:
        return pa.list_(pa.float32())

    def to_arrow(self, values: NDArray[Any]) -> pa.Array:
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)).cast(pa.float32()))

    def flat(self, chunks: Sequence[pa.Array]) -> Any:
        return super().flat([chunk.flatten() for chunk in chunks]).reshape(sum(map(len, chunks)), -1)

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.float32, (self.width,))}


@dataclass(frozen=True)
class Counter(Row):
    """Counts by level, K + 1 a row: index 0 counts what has no grade."""

    num_levels: int

    @property
    def width(self) -> int:
        return self.num_levels + 1

    def json(self) -> JsonField:
        return json.counter_field(self.width)


@dataclass(frozen=True)
class Sums(Row):
    """Sums of past events for D effects, as of `state/effects.py`."""

    dim: int

    @property
    def width(self) -> int:
        return sums_width(self.dim)

    def json(self) -> JsonField:
        return json.sums_field(self.width)


def sums_width(dim: int) -> int:
    """Numbers of the sums for D effects: a vector, and the upper triangle of a matrix."""
    return dim + dim * (dim + 1) // 2
