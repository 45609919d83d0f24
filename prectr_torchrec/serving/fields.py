"""The fields of a request: how they are described, checked, and named in errors."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.data.columns import Column
from prectr_torchrec.data.hashing import hash_id, normalised
from prectr_torchrec.data.json_values import JsonField

DOCS = {
    "history": "What this user was shown before, oldest first.",
    "peers": "What others were shown before under this query and, marked in_group and coming first, its group; oldest first.",
    "candidates": "What is to be ranked.",
}


class RequestError(ValueError):
    """A request that cannot be scored: which field, what it holds, and what would be right.

    Attributes:
        field: path, such as `candidates[3].item_id`.
        got: what is there.
        expected: what should be.
    """

    def __init__(self, field: str, got: str, expected: str) -> None:
        super().__init__(f"{field}: got {got}; expected {expected}")
        self.field, self.got, self.expected = field, got, expected


class Limits(NamedTuple):
    """Of a request; what is beyond is refused before it is read."""

    candidates: int = 10_000
    events: int = 2_000
    """Of its history, and of its peers."""
    characters: int = 1_000
    """Of a text, ids included."""
    all_characters: int = 1_000_000
    """Of all its texts."""


class Field(NamedTuple):
    """A sample column that a request may have."""

    column: Column
    json: JsonField

    @property
    def name(self) -> str:
        """Of the sample column."""
        return self.column.name

    @property
    def key(self) -> str:
        """In the request."""
        return self.column.key


def read(value: Any, kind: JsonField, place: Callable[[int], str], i: int) -> Any:
    try:
        found = kind.read(value)
    except (ValueError, TypeError, OverflowError):
        raise RequestError(place(i), shown(value), kind.expected) from None
    if isinstance(found, int | float) and kind.low is not None and kind.high is not None and not kind.low <= found <= kind.high:
        raise RequestError(place(i), shown(value), kind.expected)
    return found


def outside(numbers: NDArray[Any], kind: JsonField) -> NDArray[np.bool_]:
    if kind.low is None or kind.high is None:
        return np.zeros(len(numbers), bool)
    return ~((numbers >= kind.low) & (numbers <= kind.high))  # of NaN both are false


def ids_of_queries(queries: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Where queries are their texts."""
    texts = (normalised(str(text or "")) for text in queries.to_pylist())
    return pa.array([hash_id(text) if text else 0 for text in texts], pa.int64())


class _Short(reprlib.Repr):
    """At most some 100 characters of a value, and no more of it looked at: the standard library sorts all keys of an object."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        first = [f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in islice(x.items(), 2)]
        return f"{{{', '.join(first)}{', ...' * (len(x) > 2)}}}" if level else "{...}"


_SHORT = _Short()
_SHORT.maxlevel = 2


def short(value: Any) -> str:
    """A value for a message: as Python writes it, and cut."""
    text = _SHORT.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def shown(value: Any) -> str:
    length = f" of {len(value):,}" if isinstance(value, list) and len(value) > _SHORT.maxlist else ""
    return f"{short(value)} ({type(value).__name__}{length})"


def describe(field: Field) -> dict[str, Any]:
    """JSON Schema of a field; what is not required may be null too."""
    doc, schema = field.column.doc, field.json.schema
    described = {**schema, **({"description": doc} if doc else {})}
    if field.column.required:
        return described
    types = described["type"] if isinstance(described["type"], list) else [described["type"]]
    return {**described, "type": list(dict.fromkeys([*types, "null"])), "default": field.json.default}
