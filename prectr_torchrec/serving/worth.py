"""What labels are worth to one request: `score`, which replaces what the ranker was trained to rank by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prectr_torchrec.serving.fields import RequestError, short, shown
from prectr_torchrec.system.errors import nearest

FIELD = "score"
_LARGEST = 1e9


def describe_worth(labels: Sequence[str]) -> dict[str, Any]:
    """The JSON Schema of the field, of a ranker with these labels."""
    number = {"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST}
    return {
        "type": ["object", "null"],
        "properties": dict.fromkeys(labels, number),
        "additionalProperties": False,
        "minProperties": 1,
        "default": None,
        "description": "Label -> what it is worth: candidates are ranked by what they are expected to be worth. Without it, as "
        "the ranker was told.",
    }


def check_worth(request: Mapping[str, Any], labels: Sequence[str], path: str) -> None:
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
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and -_LARGEST <= value <= _LARGEST):
            raise RequestError(f"{where}.{label}", shown(value), f"a number from -{_LARGEST:g} to {_LARGEST:g}")
