"""The kinds of sample columns. A kind knows a value's four sides: SQL of the raw log, Arrow, flat NumPy, JSON of a request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.config.data import Levels, ZeroId
from prectr_torchrec.data import json_values as json
from prectr_torchrec.data.json_values import JsonField
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.data.raw.readings import (
    IdKind,
    Reading,
    attribute,
    label,
    measure,
    moment,
    number,
    text,
    vector,
    whole_number,
)

UNLABELLED = -1
"""Stands for null in a flat label; null grades are NaN."""
MAX_POSITION = 2**15 - 1
INT32_MAX = 2**31 - 1
DAY = 86_400
"""Seconds."""
LARGEST = 1e30
"""Of a log's own numbers: a square of such still is a double, and the number itself a float32."""


LARGEST_FLOAT16 = 65504.0
"""Of a number that is kept in half precision."""


class View(NamedTuple):
    """A value as it stands in a batch.

    Attributes:
        shape: of one row's value; (1,) for a feature that is a number, () for what is no feature by itself.
        fill: of padding rows.
    """

    dtype: type[np.generic]
    shape: tuple[int, ...] = ()
    fill: float = 0


class Kind(ABC):
    """What the values of a column are.

    Attributes:
        arrow: the Arrow type of a value.
        nullable: whether a value may be null.
        declared_as: what `data.columns` calls it, of kinds that a log can declare.
    """

    nullable: ClassVar[bool] = False
    declared_as: ClassVar[str] = ""

    @property
    @abstractmethod
    def arrow(self) -> pa.DataType: ...

    @abstractmethod
    def json(self) -> JsonField:
        """The value in a request."""

    def raw(self) -> Reading:
        """SQL of the value from a column of the raw log, and what must hold there.

        Raises:
            TypeError: preparation counts these values, and no raw column has them.
        """
        raise TypeError(f"{type(self).__name__}: no column of a raw log holds these")

    @property
    def missing(self) -> str:
        """SQL of a value that is not there, of kinds that a log can declare."""
        return self.raw().absent

    def to_arrow(self, values: NDArray[Any]) -> pa.Array:
        """Flat values as the column has them."""
        return pa.array(values).cast(self.arrow)

    def flat(self, chunks: Sequence[pa.Array]) -> Any:
        """The values (n, ...) of all chunks in NumPy, or `Texts`."""
        return _joined([chunk.to_numpy(zero_copy_only=False) for chunk in chunks])

    @property
    def beside(self) -> tuple[str, ...]:
        """Other columns of the same list that `batched` looks at."""
        return ()

    def views(self, key: str) -> dict[str, View]:
        """What a batch may have of a column that is called `key` in its list, by name."""
        return {}

    def batched(self, key: str, flat: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The values (n, ...) of all views; `flat`: flat values of the column, and of those `beside` it, by key."""
        return dict.fromkeys(self.views(key), flat[key])


@dataclass(frozen=True)
class Id(Kind):
    """64-bit ids, 0 for none.

    Attributes:
        written: how the log writes them; `either` where that is not known.
        zero: what the id 0 is in the log.
        looked_up: whether a table may have rows for them.
    """

    declared_as = "id"
    written: IdKind | Literal["either"] = "either"
    zero: ZeroId = "none"
    looked_up: bool = True

    @property
    def missing(self) -> str:
        return "0::BIGINT"

    @property
    def arrow(self) -> pa.DataType:
        return pa.int64()

    def json(self) -> JsonField:
        return json.id_field(self.written, self.zero)

    def raw(self) -> Reading:
        assert self.written != "either"
        return attribute(self.written, self.zero)

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.int64)}


@dataclass(frozen=True)
class Number(Kind):
    """Numbers that are not negative."""

    @property
    def arrow(self) -> pa.DataType:
        return pa.float32()

    def json(self) -> JsonField:
        return json.number_field()

    def raw(self) -> Reading:
        return number(0, json.MOST, f"a number in 0..{json.MOST}")

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.float32, (1,))}


@dataclass(frozen=True)
class Measure(Kind):
    """A log's own numbers, null where missing; NaN in flat values.

    Attributes:
        low: the least that may be.
    """

    nullable = True
    declared_as = "number"
    low: float = -LARGEST

    @property
    def arrow(self) -> pa.DataType:
        return pa.float32()

    def json(self) -> JsonField:
        return json.measure_field(self.low, LARGEST)

    def raw(self) -> Reading:
        return measure(self.low, LARGEST)

    def to_arrow(self, values: NDArray[Any]) -> pa.Array:
        return pa.array(values, from_pandas=True).cast(self.arrow)

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.float32, (1,), fill=np.nan)}


@dataclass(frozen=True)
class Age(Measure):
    """Days from a log's own moments to the request, null where missing; preparation has the moments."""

    low: float = 0

    def raw(self) -> Reading:
        return moment()

    def since(self, moments: NDArray[np.float64], time: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n,) days from moments to times, both in seconds; NaN without a moment, and where it comes after the time."""
        days = (time - moments) / DAY
        return np.where(days >= 0, days, np.nan).astype(np.float32)


@dataclass(frozen=True)
class Vector(Kind):
    """A log's own vectors of one width, null where missing; all NaN in flat values.

    Attributes:
        most: the largest number in one, without its sign.
    """

    nullable = True
    declared_as = "vector"
    width: int
    most: float = LARGEST

    @property
    def arrow(self) -> pa.DataType:
        return pa.list_(pa.float32(), self.width)

    def json(self) -> JsonField:
        return json.vector_field(self.width, self.most)

    def raw(self) -> Reading:
        return vector(self.width, self.most)

    def to_arrow(self, values: NDArray[Any]) -> pa.Array:
        missing = pa.array(np.isnan(values[:, 0]))
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=self.arrow, mask=missing)

    def flat(self, chunks: Sequence[pa.Array]) -> Any:
        return _joined([vector_rows(chunk) for chunk in chunks])

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.float32, (self.width,), fill=np.nan)}


@dataclass(frozen=True)
class Whole(Kind):
    """Whole numbers from `low` to `high`, which a batch has as float32."""

    low: int = 0
    high: int = INT32_MAX

    @property
    def arrow(self) -> pa.DataType:
        return pa.int32() if self.low >= -INT32_MAX and self.high <= INT32_MAX else pa.int64()

    def json(self) -> JsonField:
        return json.integer_field(self.low, self.high)

    def raw(self) -> Reading:
        return whole_number(self.low, self.high, f"a whole number in {self.low}..{self.high}")

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.float32, (1,))}


@dataclass(frozen=True)
class Position(Kind):
    """Places in a list of results, from 1; 0: not logged."""

    @property
    def arrow(self) -> pa.DataType:
        return pa.int16()

    def json(self) -> JsonField:
        return json.integer_field(0, MAX_POSITION)

    def raw(self) -> Reading:
        expected = f"a position in 1..{MAX_POSITION}, or null or 0 where not logged"
        return whole_number(0, MAX_POSITION, expected, nullable=True)

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.int64)}


@dataclass(frozen=True)
class Flag(Kind):
    """0 or 1, of what is known to have happened or not."""

    @property
    def arrow(self) -> pa.DataType:
        return pa.int8()

    def json(self) -> JsonField:
        return json.flag_field(nullable=self.nullable)

    def raw(self) -> Reading:
        return whole_number(0, 1, "0 or 1")

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.int64)}


@dataclass(frozen=True)
class Label(Flag):
    """0, 1 or null, to be learned. A batch has the value, 0 without a label, and `<key>_weight`, 1 with one."""

    nullable = True

    def raw(self) -> Reading:
        return label(UNLABELLED)

    def to_arrow(self, values: NDArray[Any]) -> pa.Array:
        return pa.array(values, mask=values == UNLABELLED).cast(self.arrow)

    def flat(self, chunks: Sequence[pa.Array]) -> Any:
        return super().flat([chunk.fill_null(UNLABELLED) if chunk.null_count else chunk for chunk in chunks])

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.float32), f"{key}_weight": View(np.float32)}

    def batched(self, key: str, flat: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {key: flat[key] == 1, f"{key}_weight": flat[key] != UNLABELLED}


@dataclass(frozen=True)
class Grade(Kind):
    """Raw relevance grades, null or NaN without one. A batch has the grade and its `level`, 0 without one."""

    nullable = True
    levels: Levels = field(default_factory=Levels)

    @property
    def arrow(self) -> pa.DataType:
        return pa.float32()

    def json(self) -> JsonField:
        return json.grade_field(self.levels.grade_min, self.levels.grade_max)

    def raw(self) -> Reading:
        low, high = self.levels.grade_min, self.levels.grade_max
        return number(low, high, f"a grade in {low}..{high} (data.levels.grade_min and grade_max), or null")

    def to_arrow(self, values: NDArray[Any]) -> pa.Array:
        return pa.array(values, from_pandas=True).cast(self.arrow)

    def views(self, key: str) -> dict[str, View]:
        return {key: View(np.float32, fill=np.nan), "level": View(np.int64)}

    def batched(self, key: str, flat: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {key: flat[key], "level": grade_levels(flat[key], self.levels.boundaries)}


@dataclass
class Texts:
    """A text column as a dictionary: row i is `distinct[index[i]]`."""

    distinct: list[str]
    index: NDArray[np.int32]

    def take(self, rows: NDArray[np.int64]) -> Texts:
        return Texts(self.distinct, self.index.take(rows))


@dataclass(frozen=True)
class Text(Kind):
    """Texts, empty where there is none; a batch has their tokens."""

    declared_as = "text"

    @property
    def arrow(self) -> pa.DataType:
        return pa.string()

    def json(self) -> JsonField:
        return json.text_field()

    def raw(self) -> Reading:
        return text()

    def to_arrow(self, values: Any) -> pa.Array:
        return values.cast(self.arrow)  # Arrow has them already

    def flat(self, chunks: Sequence[pa.Array]) -> Any:
        encoded = [chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode() for chunk in chunks]
        starts = np.cumsum([0, *(len(chunk.dictionary) for chunk in encoded)])
        places = [chunk.indices.to_numpy() + start for chunk, start in zip(encoded, starts, strict=False)]
        unified = pa.concat_arrays([chunk.dictionary for chunk in encoded]).dictionary_encode()
        return Texts(unified.dictionary.to_pylist(), unified.indices.to_numpy().take(_joined(places)))


def vector_rows(array: pa.Array) -> NDArray[Any]:
    """(n, width) of an array of lists of fixed size, NaN where it has nulls."""
    width, start = array.type.list_size, array.offset
    rows = array.values[start * width : (start + len(array)) * width].to_numpy(zero_copy_only=False).reshape(-1, width)
    return np.where(array.is_valid().to_numpy(zero_copy_only=False)[:, None], rows, np.nan) if array.null_count else rows


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
