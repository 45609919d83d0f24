"""What labels are worth to one request: `score`, which replaces what the ranker was trained to rank by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prectr_torchrec.config.score import Worth, multiplied
from prectr_torchrec.serving.fields import RequestError, short, shown
from prectr_torchrec.system.errors import nearest

FIELD = "score"
TIMES = "times"
_LARGEST = 1e9


def describe_worth(labels: Sequence[str], numbers: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON Schema of the field, of a ranker with these labels and numbers of candidates."""
    number: dict[str, Any] = {"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST}
    if numbers:
        times = {"type": "object", "properties": {TIMES: {"enum": list(numbers)}}, "required": [TIMES]}
        number = {"anyOf": [number, {**times, "additionalProperties": False}]}
    return {
        "type": ["object", "null"],
        "properties": dict.fromkeys(labels, number),
        "additionalProperties": False,
        "minProperties": 1,
        "default": None,
        "description": "Label -> what it is worth: candidates are ranked by what they are expected to be worth, a number or "
        "that of the candidate, `{times: <its name>}`. Without it, as the ranker was told.",
    }


def check_worth(request: Mapping[str, Any], labels: Sequence[str], numbers: Sequence[str], path: str) -> None:
    """Refuses a request whose `score` names what is no label, or no number.

    Raises:
        RequestError: it does; `path` stands before the name of the field.
    """
    worth, where = request.get(FIELD), f"{path}{FIELD}"
    if worth is None:
        return
    if not isinstance(worth, Mapping) or not worth:
        raise RequestError(where, shown(worth), f"an object of numbers by label, of {', '.join(labels)}")
    for label, value in worth.items():
        if label not in labels:
            name = label if isinstance(label, str) and label.isidentifier() and len(label) <= 100 else short(label)
            raise RequestError(f"{where}.{name}", "an unknown label", f"one of {', '.join(labels)}{nearest(name, labels)}")
        if isinstance(value, Mapping):
            _check_times(value, f"{where}.{label}", numbers)
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and -_LARGEST <= value <= _LARGEST):
            raise RequestError(f"{where}.{label}", shown(value), f"a number from -{_LARGEST:g} to {_LARGEST:g}")


def _check_times(value: Mapping[str, Any], where: str, numbers: Sequence[str]) -> None:
    column, named = value.get(TIMES), f"a number of the candidates, of {', '.join(numbers) or 'none, since none is declared'}"
    if value.keys() != {TIMES}:
        raise RequestError(where, shown(value), f"a number, or an object with `{TIMES}` alone: {named}")
    if not isinstance(column, str) or column not in numbers:
        raise RequestError(
            f"{where}.{TIMES}", shown(column), named + (nearest(column, numbers) if isinstance(column, str) else "")
        )


def check_numbers(candidates: Any, score: Mapping[str, Worth], path: str) -> None:
    """Refuses a request of which no candidate has the field that its score multiplies by: it would be worth nothing unnoticed.

    A candidate whose field is null, or that lacks it while others have it, has no number; the label is worth nothing there.

    Args:
        candidates: as the request has them, a list of objects, or an object of lists.
        score: what labels are worth.
        path: stands before the name of the field.

    Raises:
        RequestError: it is nowhere.
    """
    rows = [candidates] if isinstance(candidates, Mapping) else candidates if isinstance(candidates, Sequence) else []
    for label, column in multiplied(score).items() if rows else ():
        if not any(isinstance(row, Mapping) and column in row for row in rows):
            raise RequestError(
                f"{path}candidates.{column}", "no candidate with it", f"the number that the score multiplies {label} by"
            )
