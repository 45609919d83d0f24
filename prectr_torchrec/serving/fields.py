"""The fields of a request: what each may hold, in words, in JSON Schema, and as a check."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.config.data import DataConfig, ZeroId
from prectr_torchrec.data.hashing import hash_id, zero_becomes
from prectr_torchrec.data.levels import pack_levels
from prectr_torchrec.data.reader.flat import family_of
from prectr_torchrec.data.schema import COUNTS

REQUIRED = ("query", "candidate_item_id")
"""Sample columns that a request cannot do without."""
MOST = 10**12
"""Of a counter: sums of such still are far from what fp32 cannot hold."""
DOCS = {
    "request_id": "Comes back with the scores.",
    "user_id": "0: nobody known.",
    "query": "As the user typed it.",
    "user_events": "How often anything was shown to this user before.",
    "user_query_events": "How often anything was shown to this user under this query before.",
    "query_events": "How often anything was shown to others under this query before.",
    "history": "What this user was shown before, oldest first.",
    "peers": "What others were shown before under this query and, marked in_group and coming first, its group; oldest first.",
    "candidates": "What is to be ranked.",
    "relevance": "A grade, where one is known.",
    "predicted": "Probabilities of the levels where there is no grade.",
    "position": "From 1; 0: not logged.",
    "click": "1: clicked, 0: not.",
    "age": "Seconds before the request.",
    "title": "As shown.",
    "in_group": "1: under another query of the query's group.",
    "shown": "How often it was shown before, to anyone.",
    "clicked": "How often it was clicked before.",
    "examined": "How often it was shown before, each time weighted by the examination of its position.",
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


class Kind(NamedTuple):
    """What a value may be.

    Attributes:
        expected: in words.
        read: a plain value as it stands in the column; raises ValueError or TypeError.
        schema: JSON Schema.
        low, high: bounds, both ends included; none where a value does not stand in the column as it is.
    """

    expected: str
    read: Callable[[Any], Any]
    schema: dict[str, Any]
    low: float | None = None
    high: float | None = None
    is_id: bool = False
    zero: int = 0
    """What the integer 0 is in the column."""


class Field(NamedTuple):
    column: str
    key: str
    type: pa.DataType
    """Of a value; of a list for per-level statistics."""
    kind: Kind
    default: Any


def make_field(field: pa.Field, data: DataConfig, id_kinds: Mapping[str, str]) -> Field:
    """The field of a sample column; `id_kinds` tells how the log writes its ids, as `prepared.json` has it."""
    levels, grades = data.levels.count, (data.levels.grade_min, data.levels.grade_max)
    name, family = field.name, family_of(field.name)
    key = name.removeprefix(f"{family}_") if family else name
    of_id = "either" if key == "request_id" else id_kinds.get(key, id_kinds.get(key.removeprefix("user_"), "either"))
    kind, default = _kind(name, key, field.type, levels, grades, of_id, "none" if key == "request_id" else data.zero_id)
    return Field(name, key, field.type.value_type if family else field.type, kind, default)


def _kind(
    name: str, key: str, type_: pa.DataType, levels: int, grades: tuple[float, float], of_id: str, zero: ZeroId
) -> tuple[Kind, Any]:
    value = type_.value_type if pa.types.is_list(type_) else type_
    if key == "predicted":
        schema = {"type": ["array", "null"], "items": {"type": "number", "minimum": 0}, "minItems": levels, "maxItems": levels}
        return Kind(f"null or {levels} probabilities that add up to 1", lambda v: _distribution(v, levels), schema), None
    if key == "relevance":
        low, high = grades
        schema = {"type": ["number", "null"], "minimum": low, "maximum": high}
        return Kind(f"null or a grade from {low:g} to {high:g}", _grade, schema, low, high), None
    if key in ("click", "in_group"):
        optional = family_of(name) == "candidate"
        schema = {"type": ["integer", "boolean", *["null"] * optional], "minimum": 0, "maximum": 1}
        return Kind("0 or 1", _flag, schema, 0, 1), None if optional else 0
    if family_of(name) is None and pa.types.is_list(type_):
        schema = {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "maximum": MOST},
            "minItems": levels + 1,
            "maxItems": levels + 1,
        }
        expected = f"{levels + 1} numbers from 0 to {MOST}: without a grade, then by level"
        return Kind(expected, lambda v: _counts(v, levels + 1), schema, 0, MOST), [0.0] * (levels + 1)
    if pa.types.is_string(value):
        return Kind("a text", _text, {"type": "string"}), ""
    if pa.types.is_floating(value):
        schema = {"type": "number", "minimum": 0, "maximum": MOST}
        return Kind(f"a number from 0 to {MOST}", _number, schema, 0, MOST), 0.0
    counts = {"position": (0, 2**15 - 1), "age": (1, 2**62)}
    if name == "timestamp" or key in counts or pa.types.is_int32(value):
        low, high = (-(2**63), 2**63 - 1) if name == "timestamp" else counts.get(key, (0, 2**31 - 1))
        schema = {"type": "integer", "minimum": low, "maximum": high}
        return Kind(f"an integer from {low} to {high}", _integer, schema, low, high), max(low, 0)
    return _id_kind(of_id, zero), None if zero == "id" else 0


def read(value: Any, kind: Kind, place: Callable[[int], str], i: int) -> Any:
    try:
        found = kind.read(value)
    except (ValueError, TypeError, OverflowError):
        raise RequestError(place(i), shown(value), kind.expected) from None
    if isinstance(found, int | float) and kind.low is not None and kind.high is not None and not kind.low <= found <= kind.high:
        raise RequestError(place(i), shown(value), kind.expected)
    return found


def outside(numbers: NDArray[Any], kind: Kind) -> NDArray[np.bool_]:
    if kind.low is None or kind.high is None:
        return np.zeros(len(numbers), bool)
    return ~((numbers >= kind.low) & (numbers <= kind.high))  # of NaN both are false


def _id(value: Any) -> int:
    return hash_id(value) if isinstance(value, str) else _integer_id(value)


def _text_id(value: Any) -> int:
    if isinstance(value, str):
        return hash_id(value)
    if _integer(value):
        raise TypeError
    return 0  # nobody, nothing


def _integer_id(value: Any) -> int:
    """Ids from 2**63 on as `prepare` takes them, in two's complement; who has no such integers may send digits."""
    number = int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value) else _integer(value)
    return number - 2**64 if 2**63 <= number < 2**64 else number


def _integer(value: Any) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError
    return int(value)


def _flag(value: Any) -> int | None:
    return None if value is None else int(value) if isinstance(value, bool | np.bool_) else _integer(value)


def _number(value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError
    return float(value)


def _grade(value: Any) -> float | None:
    return None if value is None else _number(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # JSON can spell halves of characters, which no text has
    return value


def _counts(value: Any, length: int) -> list[float]:
    numbers = _numbers(value, length)
    if not all(number <= MOST for number in numbers):
        raise ValueError
    return numbers


def _distribution(value: Any, levels: int) -> int:
    if value is None:
        return 0
    numbers = _numbers(value, levels)
    if not abs(sum(numbers) - 1) < 0.01:
        raise ValueError
    return int(pack_levels(np.array(numbers)))


def _numbers(value: Any, length: int) -> list[float]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) != length:
        raise TypeError
    numbers = [_number(number) for number in value]
    if not all(number >= 0 for number in numbers):
        raise ValueError
    return numbers


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
    return f"{short(value)} ({type(value).__name__})"


def describe(field: Field) -> dict[str, Any]:
    """JSON Schema of a field; what is not required may be null too."""
    doc = DOCS.get(field.key) or _counter_doc(field.key)
    doc = "null: nobody known." if field.key == "user_id" and field.default is None else doc
    described = {**field.kind.schema, **({"description": doc} if doc else {})}
    if field.column in REQUIRED:
        return described
    types = described["type"] if isinstance(described["type"], list) else [described["type"]]
    return {**described, "type": list(dict.fromkeys([*types, "null"])), "default": field.default}


def _counter_doc(name: str) -> str | None:
    who, _, what = name.partition("_")
    whose = {"user": "to this user", "query": "to others under this query", "group": "to others under the query's group"}
    if what not in COUNTS or who not in whose:
        return None
    return f"By level, index 0 without a grade: times {what.replace('examined', 'shown, weighted by examination,')} {whose[who]}."


_INTEGERS = {"type": ["integer", "string"], "minimum": -(2**63), "maximum": 2**64 - 1}
_BOUNDS = (-(2**63), 2**63 - 1)
_INTEGER = Kind("a 64-bit integer, as in the log", _integer_id, _INTEGERS, *_BOUNDS)
_ID_KINDS = {
    "integer": _INTEGER,
    "unsigned": _INTEGER,
    "text": Kind("a text, as in the log", _text_id, {"type": ["string", "integer"], "minimum": 0, "maximum": 0}),
    "either": Kind("a 64-bit integer or a text, as in the log", _id, _INTEGERS, *_BOUNDS),
}
"""By how the log writes ids: as integers, or as texts that are hashed; `either` where that is not known."""


def _id_kind(of_id: str, zero: ZeroId) -> Kind:
    """An id where 0 and the text "0" are what they are in the log; null is none."""
    kind = _ID_KINDS[of_id]
    found, becomes = zero_becomes(zero)

    def read_id(value: Any) -> int:
        number = 0 if value is None else int(kind.read(value))
        return becomes if value is not None and number == found else number

    return kind._replace(read=read_id, is_id=True, zero=becomes if zero == "id" else 0)
