"""What rankers need to know of the log's own numbers before they train: where their quantiles lie in the train part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.columns import declared_columns
from prectr_torchrec.data.prepare.events import open_columns

SAMPLE = 1_000_000
"""Requests, and candidates, that are looked at at most: every n-th."""


def learn_numbers(data: DataConfig, work: Path) -> dict[str, dict[str, Any]]:
    """The numbers of the train part, by sample column, in the order of the samples.

    Args:
        data: the configuration.
        work: with the column files of the train part, of items and of queries.

    Returns:
        `edges`: the quantiles that bound the bins, ascending, each once, at most one more than `bins`; none where all values are
        missing. `mean` and `deviation` of the values as rankers see them, that is transformed; 0 and 1 where there are none, or
        all are one. `missing`: the share of rows without a value.
    """
    requests, candidates = open_columns(work / "train" / "requests"), open_columns(work / "train" / "candidates")
    of_request, of_candidate = _every_nth(requests["query"]), _every_nth(candidates["item"])
    tables: dict[str, tuple[dict[str, NDArray[Any]], Any]] = {
        "users": (requests, of_request),
        "requests": (requests, of_request),
        "queries": (open_columns(work / "queries"), requests["query"][of_request]),
        "items": (open_columns(work / "items"), candidates["item"][of_candidate]),
        "events": (candidates, of_candidate),
    }
    configs = [config for _, _, config in data.columns.declared()]
    found = {}
    for column, config in zip(declared_columns(data), configs, strict=True):
        values, rows = tables[column.source.table]
        found[column.name] = _describe(values[column.source.stored][rows], config.number.bins, config.number.transform)
    return found


def _every_nth(rows: NDArray[Any]) -> slice:
    return slice(None, None, -(-len(rows) // SAMPLE) or 1)


def _describe(values: NDArray[np.float32], bins: int, transform: str) -> dict[str, Any]:
    known = values[~np.isnan(values)].astype(np.float64)
    missing = 1 - len(known) / max(len(values), 1)
    if not len(known):
        return {"edges": [], "mean": 0.0, "deviation": 1.0, "missing": missing}
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)).astype(np.float32))
    seen = known if transform == "none" else np.sign(known) * np.log1p(np.abs(known))
    deviation = float(seen.std()) or 1.0
    return {"edges": edges.tolist(), "mean": float(seen.mean()), "deviation": deviation, "missing": missing}
