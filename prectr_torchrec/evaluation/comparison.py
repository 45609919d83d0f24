"""Whether a ranking beats the order that was shown, on the clicks of that order.

Clicks come from the logged order, which is examined from the top: as logged they favour it. Corrected for position, a click at
position k weighs 1 / examination(k), where `examination` is what `prepare` has estimated: in expectation that is the click that
would have come at position 1. Weights are limited to `MAX_WEIGHT`, which trades a little bias for a bounded variance.

Letters: n shown rows with a click label and a logged position, G requests of them. With c the click and w its weight, position
corrected:

- `auc`: over pairs of rows, c_i w_i (1 - c_j w_j) of them with i above j; without noise, the expected AUC of the click
  probability at position 1;
- `pair_accuracy`: the same over the pairs of one request, summed over requests; it stands where GAUC does as logged, since the
  weight of a request's only click would cancel within its own AUC;
- `ndcg@k`: DCG@k of gains c w, summed over requests, over the sum of the ideal ones, for the same reason.

Both orders are measured on the same resampled requests, so that the interval is of their paired difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from prectr_torchrec import metrics as m
from prectr_torchrec.data.prepare.examination import position_weights, weights_at
from prectr_torchrec.evaluation.bootstrap import Array, Measure, auc, paired_differences, ranking_measures, ratio

MAX_WEIGHT = 10.0
_FIELDS = ("model", "logged_order", "difference", "interval")
VERDICT = "ndcg@10"
"""The measure that decides."""


class Shown(NamedTuple):
    """Rows that were shown and have a click label, as `shown_rows` chooses them."""

    click: Array
    """(n,) 0 or 1."""
    position: Array
    """(n,) from 1."""
    request: Array
    """(n,) dense, 0..G-1."""


def compare_with_logged_order(
    score: Array, click: Array, position: Array, request: Array, *, examination: Sequence[float], seed: int = 0
) -> dict[str, Any] | None:
    """Measures a ranking and the logged order, and their difference.

    Args:
        score: (n,) finite; higher ranks first.
        click: (n,) 0 or 1, NaN where there is no label.
        position: (n,) logged, from 1; 0 where there is none: such rows are left out, as those without a label are.
        request: (n,) ids.
        examination: of positions 1, 2, ...; deeper ones share the last. With one value nothing is known of positions, and
            nothing is corrected.
        seed: of the resampling.

    Returns:
        `rows`, `requests`, `clicks`, `examination`, `max_weight`, `clicks_at_max_weight`; `logged` and `position_corrected`
        (None: nothing is known of positions): measure -> `model`, `logged_order`, their `difference` and its 95 % `interval`;
        and `verdict`. None without clicks or without two requests.
    """
    kept = ~np.isnan(click) & (position > 0)
    shown = Shown(click[kept].astype(np.float64), position[kept], m.dense(request[kept]))
    requests = int(shown.request.max()) + 1 if len(shown.request) else 0
    if requests < 2 or not 0 < shown.click.sum() < len(shown.click):
        return None
    model, logged = score[kept].astype(np.float64), -shown.position.astype(np.float64)
    kinds = {"logged": tuple(ranking_measures(order, order, shown.click, shown.request) for order in (model, logged))}
    weights = np.minimum(1 / weights_at(position_weights(examination), shown.position), MAX_WEIGHT)
    if len(examination) > 1:
        kinds["position_corrected"] = (_corrected(model, shown, weights), _corrected(logged, shown, weights))
    found: dict[str, Any] = {
        "rows": len(shown.click),
        "requests": requests,
        "clicks": int(shown.click.sum()),
        "examination": list(examination),
        "max_weight": MAX_WEIGHT,
        "clicks_at_max_weight": int(shown.click[weights == MAX_WEIGHT].sum()),
        "position_corrected": None,
    }
    found |= {kind: _differences(*measures, requests=requests, seed=seed) for kind, measures in kinds.items()}
    return {**found, "verdict": _verdict(found)}


def _verdict(found: dict[str, Any]) -> dict[str, Any]:
    """One measure and one line: better, worse, or not distinguished, by whether the interval holds zero."""
    corrected = found["position_corrected"] is not None
    measured = found["position_corrected" if corrected else "logged"][VERDICT]
    difference, (low, high) = measured["difference"], measured["interval"]
    outcome = "better" if low > 0 else "worse" if high < 0 else "not distinguished"
    how = "clicks corrected for position" if corrected else "clicks as logged, which favour it: no examination is known"
    interval = f"{VERDICT.upper()}, 95 % interval {low:+.4f} to {high:+.4f}, {how}"
    start = (
        "not distinguished from the logged order: " if outcome == "not distinguished" else f"{outcome} than the logged order by "
    )
    value = f"{difference:+.4f}" if outcome == "not distinguished" else f"{abs(difference):.4f}"
    return {"measure": VERDICT, "position_corrected": corrected, "outcome": outcome, "text": f"{start}{value} ({interval})"}


def _corrected(score: Array, shown: Shown, weights: Array) -> dict[str, Measure]:
    gain, request = shown.click * weights, shown.request
    won, pairs = m.pair_weights(score, gain, 1 - gain, request)
    itself = np.bincount(request, gain * (1 - gain))  # a row is no pair with itself; half of it was counted as a tie
    measures: dict[str, Measure] = {
        "auc": auc(score, gain, 1 - gain, request),
        "pair_accuracy": ratio(won - itself / 2, pairs - itself),
    }
    for k in m.NDCG_AT:
        measures[f"ndcg@{k}"] = ratio(m.dcg(score, gain, request, k), m.dcg(gain, gain, request, k))
    return measures


def _differences(model: dict[str, Measure], logged: dict[str, Measure], *, requests: int, seed: int) -> dict[str, Any]:
    """Values, differences, and their intervals; null where there is no difference."""
    found = {}
    for name, (ours, theirs, difference, interval) in paired_differences(model, logged, requests=requests, seed=seed).items():
        values = (ours, theirs) if difference is not None else (None, None)
        found[name] = dict(zip(_FIELDS, (*values, difference, interval), strict=True))
    return found
