"""Paired bootstrap intervals by request: two scores of the same rows, measured on the same resampled requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec import metrics as m

Array = NDArray[Any]
Measure = Callable[[Array], float]
"""From weights of the requests (G,) to the value."""

REPLICATES = 200


class Difference(NamedTuple):
    """Of two values of a measure; the interval is None where one of them is not finite, and the difference too."""

    first: float
    second: float
    difference: float | None
    interval: list[float] | None
    """95 %, by the bootstrap's standard error."""


def intervals(measures: Mapping[str, Measure], requests: int, *, seed: int = 0) -> dict[str, list[float] | None]:
    """Lower and upper end of each measure's 95 % interval, over `requests` requests; None where it is not finite."""
    zero: dict[str, Measure] = dict.fromkeys(measures, lambda weights: 0.0)
    return {name: found.interval for name, found in paired_differences(measures, zero, requests=requests, seed=seed).items()}


def paired_differences(
    first: Mapping[str, Measure], second: Mapping[str, Measure], *, requests: int, seed: int = 0
) -> dict[str, Difference]:
    """Values and differences of the measures that both have, over `requests` requests."""
    once, rng = np.ones(requests), np.random.default_rng(seed)
    replicates: dict[str, list[float]] = {name: [] for name in first}
    for _ in range(REPLICATES):
        weights = np.bincount(rng.integers(0, requests, requests), minlength=requests).astype(np.float64)
        for name, values in replicates.items():
            values.append(first[name](weights) - second[name](weights))
    found = {}
    for name, values in replicates.items():
        one, other = first[name](once), second[name](once)
        if not np.isfinite([one, other]).all():
            found[name] = Difference(one, other, None, None)
            continue
        error, difference = m.NORMAL_95 * float(np.nanstd(values, ddof=1)), one - other
        found[name] = Difference(one, other, difference, [difference - error, difference + error])
    return found


def ranking_measures(score: Array, ranking: Array, label: Array, request: Array) -> dict[str, Measure]:
    """The project's own measures of how rows are ordered, as functions of the requests' weights.

    Args:
        score: (n,) finite, what AUC and GAUC are of.
        ranking: (n,) finite, what NDCG is of.
        label: (n,) 0 or 1.
        request: (n,) dense, 0..G-1.
    """
    return {
        "auc": auc(score, label, 1 - label, request),
        "gauc_request": ratio(*m.gauc_sums(score, label, request)),
        **{f"ndcg@{k}": ratio(*m.ndcg_sums(ranking, label, request, k)) for k in m.NDCG_AT},
    }


def ratio(numerator: Array, denominator: Array) -> Measure:
    """Of sums over requests; NaN where there is nothing to divide by."""

    def measure(weights: Array) -> float:
        below = float(weights @ denominator)
        return float(weights @ numerator) / below if below > 0 else float("nan")

    return measure


def auc(score: Array, positive: Array, negative: Array, request: Array) -> Measure:
    """Over all rows; sorted once, so that a resampling costs no sort.

    Args:
        score: (n,) finite.
        positive, negative: (n,) how much of each row is of either class.
        request: (n,) dense, 0..G-1.
    """
    order, starts, _ = m.tie_runs(score, np.zeros(len(score), dtype=np.int64))
    p, n, of_request = positive[order], negative[order], request[order]

    def measure(weights: Array) -> float:
        w = weights[of_request]
        p_run, n_run = np.add.reduceat(p * w, starts), np.add.reduceat(n * w, starts)
        pairs = float(p_run.sum() * n_run.sum())
        n_below = np.cumsum(n_run) - n_run
        return float(p_run @ (n_below + n_run / 2)) / pairs if pairs > 0 else float("nan")

    return measure
