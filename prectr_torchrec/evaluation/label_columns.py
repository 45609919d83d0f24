"""Labels beside the click in predictions, and the score: what the labels are expected to be worth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.config.score import CLICK_ALONE, ColumnWorth, Worth, multiplied, plain_score, read_score

_LABEL, _WORTH = b"label", b"worth"


class LabelColumns(NamedTuple):
    """Of n rows."""

    probability: NDArray[Any]
    """(n,) the position held at its reference."""
    at_position: NDArray[Any]
    """(n,) at the logged position."""
    value: NDArray[Any]
    """(n,) 0 or 1, NaN where it is not known."""


Worths = dict[str, float | NDArray[np.float64]]
"""Label -> what it is worth, to all candidates or to each, (n,)."""


def each_worth(score: Mapping[str, Worth], numbers: Mapping[str, Any]) -> Worths:
    """What labels are worth to n candidates.

    Args:
        score: label -> what it is worth.
        numbers: column -> (n,) the number of each candidate, None or NaN where it is missing; then the label is worth nothing.
    """
    found: Worths = {}
    for label, worth in score.items():
        if isinstance(worth, ColumnWorth):
            found[label] = np.nan_to_num(np.asarray(numbers[worth.times], dtype=np.float64), nan=0.0)
        else:
            found[label] = worth
    return found


def expected_worth(probabilities: Mapping[str, NDArray[Any]], worths: Worths) -> NDArray[np.float32]:
    """(n,) the sum of the labels' probabilities times what each is worth; of the click at 1, its probability itself."""
    total = sum(worth * probabilities[label].astype(np.float64) for label, worth in worths.items())
    return np.asarray(total, dtype=np.float64).astype(np.float32)


def worth_columns(score: Mapping[str, Worth]) -> dict[str, str]:
    """Label -> the column of a predictions file with what it is worth to each candidate, of those worth a number of it."""
    return {label: f"{label}_worth" for label in multiplied(score)}


def label_columns(labels: Iterable[str], score: Mapping[str, Worth]) -> list[pa.Field]:
    """Columns of a predictions file of labels beside the click and, where there are such or a number is multiplied, of `score`.

    Of a label `order` these are `order_probability`, `order_probability_at_position` and `order`, null where it is not known; and
    `order_worth`, where it is worth a number of the candidate.
    """
    kinds = {"{}_probability": pa.float32(), "{}_probability_at_position": pa.float32(), "{}": pa.int8()}
    others = [label for label in labels if label != "click"]
    fields = [pa.field(n.format(label), kind, metadata={_LABEL: label}) for label in others for n, kind in kinds.items()]
    fields += [pa.field(name, pa.float32()) for name in worth_columns(score).values()]
    if fields:
        fields.append(pa.field("score", pa.float32(), metadata={_WORTH: json.dumps(plain_score(score))}))
    return fields


def labels_of(schema: pa.Schema) -> dict[str, list[str]]:
    """Label -> the columns of `LabelColumns` in a file, of those that `label_columns` made."""
    found: dict[str, list[str]] = {}
    for field in schema:
        if label := (field.metadata or {}).get(_LABEL):
            found.setdefault(label.decode(), []).append(field.name)
    return found


def worth_of(schema: pa.Schema) -> dict[str, Worth]:
    """What the labels are worth in a file's score."""
    metadata = schema.field("score").metadata if "score" in schema.names else {}
    return read_score(json.loads(metadata[_WORTH])) if _WORTH in (metadata or {}) else dict(CLICK_ALONE)
