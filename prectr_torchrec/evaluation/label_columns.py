"""Labels beside the click in predictions, and the score: what the labels are expected to be worth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.config.run import CLICK_ALONE

_LABEL, _WORTH = b"label", b"worth"


class LabelColumns(NamedTuple):
    """Of n rows."""

    probability: NDArray[Any]
    """(n,) the position held at its reference."""
    at_position: NDArray[Any]
    """(n,) at the logged position."""
    value: NDArray[Any]
    """(n,) 0 or 1, NaN where it is not known."""


def expected_worth(probabilities: Mapping[str, NDArray[Any]], worth: Mapping[str, float]) -> NDArray[np.float32]:
    """(n,) the sum of the labels' probabilities times what each is worth; of the click at 1, its probability itself."""
    total = sum(value * probabilities[label].astype(np.float64) for label, value in worth.items())
    return np.asarray(total, dtype=np.float64).astype(np.float32)


def label_columns(labels: Iterable[str], worth: Mapping[str, float]) -> list[pa.Field]:
    """Columns of a predictions file of labels beside the click and, where there are such, of `score`.

    Of a label `order` these are `order_probability`, `order_probability_at_position` and `order`, null where it is not known.
    """
    kinds = {"{}_probability": pa.float32(), "{}_probability_at_position": pa.float32(), "{}": pa.int8()}
    others = [label for label in labels if label != "click"]
    fields = [pa.field(n.format(label), kind, metadata={_LABEL: label}) for label in others for n, kind in kinds.items()]
    if fields:
        fields.append(pa.field("score", pa.float32(), metadata={_WORTH: json.dumps(dict(worth))}))
    return fields


def labels_of(schema: pa.Schema) -> dict[str, list[str]]:
    """Label -> the columns of `LabelColumns` in a file, of those that `label_columns` made."""
    found: dict[str, list[str]] = {}
    for field in schema:
        if label := (field.metadata or {}).get(_LABEL):
            found.setdefault(label.decode(), []).append(field.name)
    return found


def worth_of(schema: pa.Schema) -> dict[str, float]:
    """What the labels are worth in a file's score."""
    metadata = schema.field("score").metadata if "score" in schema.names else {}
    return dict(json.loads(metadata[_WORTH])) if _WORTH in (metadata or {}) else dict(CLICK_ALONE)
