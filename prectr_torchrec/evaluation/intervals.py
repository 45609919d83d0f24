"""95 % intervals of what labels are measured by, and of what two runs differ by on the same rows: requests are resampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prectr_torchrec import metrics as m
from prectr_torchrec.data.parquet_files import readable
from prectr_torchrec.evaluation.bootstrap import Array, Measure, intervals, paired_differences, ranking_measures, ratio
from prectr_torchrec.evaluation.label_columns import LabelColumns, labels_of

_KEYS = ("request_id", "item_id")
_CLICK = ("click_probability", "click_probability_at_position", "click")


class Scored(NamedTuple):
    """n rows of a run."""

    labels: dict[str, LabelColumns]
    """The click among them."""
    ranking: Array
    """(n,) higher ranks first."""
    request: Array
    """(n,) dense, 0..G-1."""


def label_intervals(scored: Scored) -> dict[str, dict[str, list[float] | None]]:
    """Label -> measure -> lower and upper end; None where a measure has no value, nothing of labels of one class."""
    known = {label: known_rows(scored, label) for label in scored.labels}
    return {label: intervals(*_measures(scored, label, rows)) for label, rows in known.items() if rows is not None}


def compare_runs(predictions: Path, against: Path) -> dict[str, dict[str, Any]]:
    """What a run's predictions differ by from another's on the same candidates.

    Args:
        predictions: file of `prectr evaluate`.
        against: the other run's.

    Returns:
        Label -> measure -> `value`, `against`, their `difference` and its 95 % `interval`, of the labels that both predict.

    Raises:
        ValueError: they are not of the same candidates, or one of them cannot be read.
    """
    ours, theirs = _read(predictions), _read(against)
    for key in _KEYS:
        if len(ours) != len(theirs) or not ours[key].equals(theirs[key]):
            raise ValueError(
                f"{against}: {len(theirs):,} candidates that are not the {len(ours):,} of {predictions}; score the same split "
                "with both runs"
            )
    request = m.dense(np.asarray(ours["request_id"].to_numpy()))
    first, second = (_scored(table, request) for table in (ours, theirs))
    found = {}
    for label in first.labels.keys() & second.labels.keys():
        if (rows := known_rows(first, label)) is None:
            continue
        mine, requests = _measures(first, label, rows)
        other, _ = _measures(second, label, rows)
        differences = paired_differences(mine, other, requests=requests)
        names = ("value", "against", "difference", "interval")
        found[label] = {name: dict(zip(names, values, strict=True)) for name, values in differences.items()}
    return {label: found[label] for label in first.labels if label in found}


def known_rows(scored: Scored, label: str) -> Array | None:
    """(n,) which rows have the label; None where these are of one class or of one request."""
    value = scored.labels[label].value
    known = ~np.isnan(value)
    mixed = known.any() and 0 < value[known].sum() < known.sum() and len(np.unique(scored.request[known])) > 1
    return known if mixed else None


def _measures(scored: Scored, label: str, rows: Array) -> tuple[dict[str, Measure], int]:
    """As functions of the requests' weights, and the number of requests."""
    columns = scored.labels[label]
    value, request = columns.value[rows].astype(np.float64), m.dense(scored.request[rows])
    score, at_position, ranking = columns.probability[rows], columns.at_position[rows], scored.ranking[rows]
    measures: dict[str, Measure] = {
        **ranking_measures(score, ranking, value, request),
        "normalized_entropy": _entropy(at_position, value, request),
        "calibration": ratio(np.bincount(request, at_position), np.bincount(request, value)),
    }
    return measures, int(request.max()) + 1


def _entropy(probability: Array, label: Array, request: Array) -> Measure:
    loss, clicks, rows = (np.bincount(request, x) for x in (m.log_losses(probability, label), label, np.ones(len(label))))

    def measure(weights: Array) -> float:
        count = float(weights @ rows)
        entropy = m.rate_entropy(float(weights @ clicks) / count)
        return float(weights @ loss) / count / entropy if entropy else float("nan")

    return measure


def _read(path: Path) -> pa.Table:
    """In the order of requests and items."""
    with readable(path):
        schema = pq.read_schema(path)
        names = [name for columns in labels_of(schema).values() for name in columns]
        wanted = [*_KEYS, *_CLICK, *(["score"] if "score" in schema.names else []), *names]
        return pq.read_table(path, columns=wanted).sort_by([(key, "ascending") for key in _KEYS])


def _scored(table: pa.Table, request: Array) -> Scored:
    def column(name: str) -> Array:
        return np.asarray(table[name].cast(pa.float64()).to_numpy())  # null becomes NaN

    labels = {"click": _CLICK} | {label: tuple(names) for label, names in labels_of(table.schema).items()}
    ranking = column("score" if "score" in table.column_names else "click_probability")
    return Scored({label: LabelColumns(*map(column, names)) for label, names in labels.items()}, ranking, request)
