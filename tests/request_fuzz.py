"""Requests that hypothesis makes up from the schema: mostly what it allows, with wrong values here and there."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
HOSTILE = (
    b"NaN",
    b"-Infinity",
    b"1e400",
    b"-1",
    b"null",
    b"\xff",
    b"\\ud800",
    b"\\u0000",
    b"\xe2\x80\xae",
    b"9" * 5000,
    b"[" * 2000,
    b'{"query":',
    b'"query": 1, ',
    b"'",
    b"\x00",
    b"true",
    b"[]",
    b"{}",
    b'"',
    b",",
    b"a" * 2000,
)
"""Pieces that readers of JSON or of texts stumble over."""
ANSWERS = {200, 400, 408, 413, 422, 503}
"""What a server may say to a body, whatever it holds."""


def requests(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values for a schema of `RequestSchema.describe`."""
    return _object(schema, wrong=12)


def bodies(schema: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """What is sent: JSON for the most part, cut or damaged JSON and bytes of any kind for the rest."""
    good = requests(schema).map(lambda request: json.dumps(request).encode())
    cut = st.tuples(good, st.integers(0, 200)).map(lambda found: found[0][: found[1]])
    other = cut | _damaged(good) | st.binary(max_size=60) | ANYTHING.map(lambda value: json.dumps(value).encode())
    return _mostly(good, other, 4)


def _damaged(good: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Some bytes taken out, and others in their place, now and then."""
    pieces = st.sampled_from(HOSTILE) | st.binary(max_size=3)
    damage = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 8), pieces), min_size=1, max_size=3)
    return st.tuples(good, damage).map(lambda found: spliced(*found))


def spliced(body: bytes, damage: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes with others in the place of some: where, of how many, and what."""
    for at, length, piece in damage:
        at %= len(body) + 1
        body = body[:at] + piece + body[at + length :]
    return body


def complaint(status: int, answer: Any) -> str | None:
    """What is wrong with an answer to any body: its status, or a refusal of a field that does not name it."""
    if status not in ANSWERS:
        return f"status {status}"
    if status != 200:
        error = answer.get("error", {}) if isinstance(answer, dict) else {}
        if not error.get("message"):
            return f"status {status} without a message"
        if status == 422 and not (error.get("field") and str(error["message"]).startswith(error["field"])):
            return f"the message names no field: {error}"
    elif [row["click_probability"] for row in answer["candidates"] if not 0 <= row["click_probability"] <= 1]:
        return "a click probability outside of 0 to 1"
    return None


def _mostly(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any], one_in: int) -> st.SearchStrategy[Any]:
    return st.integers(1, one_in).flatmap(lambda number: bad if number == one_in else good)


def _object(schema: dict[str, Any], wrong: int) -> st.SearchStrategy[Any]:
    fields = {name: _mostly(_value(about), ANYTHING, wrong) for name, about in schema["properties"].items()}
    needed = {name: fields.pop(name) for name in schema.get("required", ())}
    whole = st.fixed_dictionaries(needed, optional=fields)
    lacking = st.fixed_dictionaries({}, optional={**needed, **fields, "unknown": SCALARS})
    return _mostly(whole, lacking, wrong)


def _value(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What one field's schema allows."""
    if "anyOf" in schema:
        return st.one_of(*map(_value, schema["anyOf"]))
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    low, high = schema.get("minimum"), schema.get("maximum")
    made: dict[str, st.SearchStrategy[Any]] = {
        "null": st.none(),
        "boolean": st.booleans(),
        "integer": st.integers(low, high),
        "string": st.text(max_size=8),
        "number": st.floats(low, high),
    }
    if "array" in types:
        least, most = schema.get("minItems", 0), schema.get("maxItems", 4)
        made["array"] = st.lists(_value(schema["items"]), min_size=least, max_size=most)
    if "object" in types:
        made["object"] = _object(schema, wrong=30)
    return st.one_of(*(made[kind] for kind in types))
