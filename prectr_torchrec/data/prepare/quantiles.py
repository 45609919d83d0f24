"""What rankers need to know of the log's own numbers and vectors before they train: how they are spread in the train part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.config.columns import NumberColumn, VectorColumn
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.column_kinds import Age
from prectr_torchrec.data.columns import Column, declared_of
from prectr_torchrec.data.item_vectors import item_vectors
from prectr_torchrec.data.prepare.events import open_columns
from prectr_torchrec.data.raw.versions import VERSION

SAMPLE = 1_000_000
"""Numbers of a column that are looked at at most: those of every n-th request or candidate."""


def learn_numbers(data: DataConfig, work: Path, vectors: Path) -> dict[str, dict[str, Any]]:
    """The numbers and vectors of the train part, by sample column.

    Args:
        data: the configuration.
        work: with the column files of the train part, of items and of queries.
        vectors: folder of those of items; not there, where none are declared.

    Returns:
        `edges`: the quantiles that bound the bins, ascending, each once, at most one more than `bins`; none where all values are
        missing. `mean` and `deviation` of the values as rankers see them, that is transformed; 0 and 1 where there are none, or
        all are one. `missing`: the share of rows without a value. Of vectors, `mean` and `deviation` are lists, of each of their
        numbers, and there are no edges.
    """
    requests, candidates = open_columns(work / "train" / "requests"), open_columns(work / "train" / "candidates")
    tables: dict[str, tuple[dict[str, NDArray[Any]], NDArray[np.int64] | None]] = {
        "users": (requests, None),
        "requests": (requests, None),
        "queries": (open_columns(work / "queries"), requests["query"]),
        "items": (open_columns(work / "items"), candidates.get(VERSION, candidates["item"])),
        "events": (candidates, None),
    }
    found = {}
    for column, number in declared_of(data, NumberColumn):
        named, rows = tables[column.source.table]
        values = _sampled(named[column.source.stored], rows, SAMPLE)
        if isinstance(column.kind, Age):
            values = column.kind.since(values, _times(column, requests, SAMPLE))
        found[column.name] = _describe(values, number.bins, number.transform)
    tables["items"] = (_of_items(data, vectors), candidates["item"])
    for column, vector in declared_of(data, VectorColumn):
        named, rows = tables[column.source.table]
        found[column.name] = _describe_vectors(_sampled(named[column.source.stored], rows, SAMPLE // vector.width))
    return found


def _of_items(data: DataConfig, folder: Path) -> dict[str, NDArray[Any]]:
    """The vectors of items, as work files would have them."""
    kept = open_columns(folder) if folder.is_dir() else {}
    return {column.source.stored: kept[column.key] for column, _ in item_vectors(data)}


def _sampled(values: NDArray[Any], rows: NDArray[np.int64] | None, most: int) -> NDArray[Any]:
    """Every n-th of the values, or of the rows of them."""
    step = _step(len(values if rows is None else rows), most)
    return values[::step] if rows is None else values[rows[::step]]


def _times(column: Column, requests: dict[str, NDArray[Any]], most: int) -> NDArray[np.int64]:
    """Of the request of each of the values that `_sampled` takes."""
    time, ends = requests["timestamp"], requests["candidate_ends"]
    if column.family == "request":
        return time[:: _step(len(time), most)]
    count = int(ends[-1]) if len(ends) else 0
    return time[np.searchsorted(ends, np.arange(0, count, _step(count, most)), side="right")]


def _step(count: int, most: int) -> int:
    return -(-count // most) or 1


def _describe_vectors(values: NDArray[np.float32]) -> dict[str, Any]:
    known = values[~np.isnan(values[:, 0])].astype(np.float64)
    missing = 1 - len(known) / max(len(values), 1)
    if not len(known):
        return {"mean": [0.0] * values.shape[1], "deviation": [1.0] * values.shape[1], "missing": missing}
    deviation = known.std(axis=0)
    return {"mean": known.mean(axis=0).tolist(), "deviation": np.where(deviation > 0, deviation, 1).tolist(), "missing": missing}


def _describe(values: NDArray[np.float32], bins: int, transform: str) -> dict[str, Any]:
    known = values[~np.isnan(values)].astype(np.float64)
    missing = 1 - len(known) / max(len(values), 1)
    if not len(known):
        return {"edges": [], "mean": 0.0, "deviation": 1.0, "missing": missing}
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)).astype(np.float32))
    seen = known if transform == "none" else np.sign(known) * np.log1p(np.abs(known))
    deviation = float(seen.std()) or 1.0
    return {"edges": edges.tolist(), "mean": float(seen.mean()), "deviation": deviation, "missing": missing}
