"""Values of a request as JSON or Python have them: what each may be, in words, in JSON Schema, and how it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from prectr_torchrec.config.data import ZeroId
from prectr_torchrec.data.hashing import hash_id, normalised, path_levels, zero_becomes
from prectr_torchrec.data.levels import pack_levels

MOST = 10**12
"""Of a counter: sums of such still are far from what fp32 cannot hold."""


class JsonField(NamedTuple):
    """What a value may be.

    Attributes:
        expected: in words.
        read: a plain value as it stands in the column; raises ValueError or TypeError.
        schema: JSON Schema.
        default: where a request has no value, or null.
        low, high: bounds, both ends included; none where a value does not stand in the column as it is.
        zero: what the integer 0 is in the column.
    """

    expected: str
    read: Callable[[Any], Any]
    schema: dict[str, Any]
    default: Any
    low: float | None = None
    high: float | None = None
    zero: int = 0


def number_field() -> JsonField:
    """A number that is not negative."""
    schema = {"type": "number", "minimum": 0, "maximum": MOST}
    return JsonField(f"a number from 0 to {MOST}", _number, schema, 0.0, 0, MOST)


def measure_field(low: float, high: float) -> JsonField:
    """A number within bounds; null or NaN where it is missing."""
    schema = {"type": ["number", "null"], "minimum": low, "maximum": high}
    return JsonField(f"a number from {low:g} to {high:g}, or null", _measure, schema, None, low, high)


def vector_field(width: int, most: float) -> JsonField:
    """Numbers from -most to most, as many as are in each vector; null where it is missing."""
    items = {"type": "number", "minimum": -most, "maximum": most}
    schema = {"type": ["array", "null"], "items": items, "minItems": width, "maxItems": width}
    expected = f"null or {width} numbers from {-most:g} to {most:g}"
    return JsonField(expected, lambda v: _vector(v, width, most), schema, None)


def integer_field(low: int, high: int) -> JsonField:
    """A whole number within bounds."""
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return JsonField(f"an integer from {low} to {high}", _integer, schema, max(low, 0), low, high)


def flag_field(*, nullable: bool) -> JsonField:
    """0 or 1, false or true; null where that may be."""
    schema = {"type": ["integer", "boolean", *["null"] * nullable], "minimum": 0, "maximum": 1}
    return JsonField("0 or 1", _flag, schema, None if nullable else 0, 0, 1)


def grade_field(low: float, high: float) -> JsonField:
    """A grade, or null."""
    schema = {"type": ["number", "null"], "minimum": low, "maximum": high}
    return JsonField(f"null or a grade from {low:g} to {high:g}", _grade, schema, None, low, high)


def distribution_field(levels: int) -> JsonField:
    """Probabilities of the levels, or null; packed in the column."""
    schema = {"type": ["array", "null"], "items": {"type": "number", "minimum": 0}, "minItems": levels, "maxItems": levels}
    return JsonField(f"null or {levels} probabilities that add up to 1", lambda v: _distribution(v, levels), schema, None)


def counter_field(bins: int) -> JsonField:
    """Numbers that are not negative, one a bin: without a grade, then by level."""
    items = {"type": "number", "minimum": 0, "maximum": MOST}
    schema = {"type": "array", "items": items, "minItems": bins, "maxItems": bins}
    expected = f"{bins} numbers from 0 to {MOST}: without a grade, then by level"
    return JsonField(expected, lambda v: _counts(v, bins), schema, [0.0] * bins, 0, MOST)


def sums_field(width: int) -> JsonField:
    """Sums over past events, of either sign."""
    items = {"type": "number", "minimum": -MOST, "maximum": MOST}
    schema = {"type": "array", "items": items, "minItems": width, "maxItems": width}
    return JsonField(
        f"{width} numbers from {-MOST} to {MOST}", lambda v: _numbers(v, width, -MOST, MOST), schema, [0.0] * width, -MOST, MOST
    )


def text_field() -> JsonField:
    """A text."""
    return JsonField("a text", _text, {"type": "string"}, "")


def id_field(written: str, zero: ZeroId) -> JsonField:
    """An id where 0 and the text "0" are what they are in the log; null and the empty text are none.

    Args:
        written: how the log writes its ids: `integer` or `unsigned`, `text`, which is hashed, or `either` where that is unknown.
        zero: what 0 is.
    """
    field = _IDS[written]
    found, becomes = zero_becomes(zero)

    def read_id(value: Any) -> int:
        if value is None or (value == "" and written in ("text", "normalised", "either")):
            return 0
        number = int(field.read(value))
        return becomes if number == found else number

    is_id = zero == "id"
    return field._replace(read=read_id, default=None if is_id else 0, zero=becomes if is_id else 0)


def ids_field(written: str, zero: ZeroId, most: int) -> JsonField:
    """A list of ids, as of `id_field`; null is the empty list."""
    one = id_field(written, zero)
    schema = {"type": "array", "items": one.schema, "maxItems": most}
    return JsonField(f"a list of at most {most:,}, each {one.expected}", lambda v: _list(v, one, most), schema, [])


def path_field(separator: str, zero: ZeroId, most: int) -> JsonField:
    """A path as text, or the ids of its levels as samples have them; null is none."""
    one, id_ = id_field("text", zero), _INTEGER._replace(schema={"type": "integer"})

    def read_path(value: Any) -> list[Any]:
        if isinstance(value, str):
            return _list(path_levels(value, separator), one, most)
        return _list(value, id_, most)

    expected = f"a text of at most {most:,} levels with {separator!r} between them"
    schema = {"type": ["string", "array", "null"], "items": id_.schema, "maxItems": most}
    return JsonField(expected, read_path, schema, [])


def weights_field(of: str, most: int, largest: float) -> JsonField:
    """A list of numbers that are not negative, one for each of the ids; of null or none, each is 1."""
    one = JsonField(
        f"a number from 0 to {largest:g}", _number, {"type": "number", "minimum": 0, "maximum": largest}, 1, 0, largest
    )
    schema = {"type": "array", "items": one.schema, "maxItems": most}
    return JsonField(f"a list, for each of {of!r} {one.expected}", lambda v: _list(v, one, most), schema, [])


def _id(value: Any) -> int:
    return hash_id(value) if isinstance(value, str) else _integer_id(value)


def _query_id(value: Any) -> int:
    return _text_id(normalised(value) if isinstance(value, str) else value)


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


def _measure(value: Any) -> float | None:
    number = _grade(value)
    return None if number is None or math.isnan(number) else number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # JSON can spell halves of characters, which no text has
    return value


def _counts(value: Any, length: int) -> list[float]:
    return _numbers(value, length, 0, MOST)


def _vector(value: Any, width: int, most: float) -> list[float] | None:
    return None if value is None else _numbers(value, width, -most, most)


def _distribution(value: Any, levels: int) -> int:
    if value is None:
        return 0
    numbers = _numbers(value, levels, 0, math.inf)
    if not abs(sum(numbers) - 1) < 0.01:
        raise ValueError
    return int(pack_levels(np.array(numbers)))


def _list(value: Any, one: JsonField, most: int) -> list[Any]:
    """Values that each are one; an id is never null there."""
    if value is None:
        return []
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence | np.ndarray)
        or len(value) > most
        or any(v is None for v in value)
    ):
        raise TypeError
    found = [one.read(v) for v in value]
    if one.low is not None and one.high is not None and not all(one.low <= v <= one.high for v in found):
        raise ValueError
    return found


def _numbers(value: Any, length: int, low: float, high: float) -> list[float]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) != length:
        raise TypeError
    numbers = [_number(number) for number in value]
    if not all(low <= number <= high for number in numbers):
        raise ValueError
    return numbers


_INTEGERS = {"type": ["integer", "string"], "minimum": -(2**63), "maximum": 2**64 - 1}
_BOUNDS = (-(2**63), 2**63 - 1)
_INTEGER = JsonField("a 64-bit integer, as in the log", _integer_id, _INTEGERS, 0, *_BOUNDS)
_IDS = {
    "integer": _INTEGER,
    "unsigned": _INTEGER,
    "text": JsonField("a text, as in the log", _text_id, {"type": ["string", "integer"], "minimum": 0, "maximum": 0}, 0),
    "normalised": JsonField("the query, in any case", _query_id, {"type": ["string", "integer"], "minimum": 0, "maximum": 0}, 0),
    "either": JsonField("a 64-bit integer or a text, as in the log", _id, _INTEGERS, 0, *_BOUNDS),
}
