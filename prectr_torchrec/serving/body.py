"""What a client sent: its JSON, read strictly and no more of it than a request may have."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from prectr_torchrec.serving.fields import Limits, RequestError, short
from prectr_torchrec.serving.request import RequestSchema


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, **details: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": {"message": message, **details}}


def read_request(schema: RequestSchema, body: bytes, limits: Limits) -> tuple[dict[str, Any], pa.Table]:
    """A request as it was sent, and as a row of samples.

    Raises:
        Refused: it is not JSON, or not a request within the limits.
    """
    try:
        most = schema.most_values(limits)
        if body.count(b",") > most:  # counted first: a million values take seconds and gigabytes to read
            expected = f"at most {limits.candidates:,} candidates, {limits.events:,} events of history and as many of peers"
            raise RequestError("request", f"more than {most:,} commas", expected)
        plain = read_json(body)
        return plain, schema.from_plain([plain], name=None, limits=limits)
    except RequestError as error:
        raise Refused(422, str(error), field=error.field, got=error.got, expected=error.expected) from None


def read_json(body: bytes) -> Any:
    """JSON as its standard has it: no NaN, and no key twice in an object.

    Raises:
        Refused: it is not.
    """
    try:
        return json.loads(body, parse_constant=_no_number, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {short(twice)} stands twice in an object")
    return found
