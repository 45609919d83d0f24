"""What the parts of a ranker do for which users, from its predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.config.data import Levels
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.evaluation.predictions import Array, Oracle, Table
from prectr_torchrec.metrics import spearman

Measures = dict[str, Any]

WEIGHTS = ("weight_own", "weight_peers", "weight_prior")
"""How much of a candidate's relevance preference is the own history, the peers, the prior."""


def mean_parts(table: Table, activity: dict[str, NDArray[np.bool_]]) -> Measures:
    """Column of a part -> its `meaning`, its mean over `all` rows, and over each segment of users that has rows."""
    return {
        name: {
            "meaning": table.meanings[name],
            "all": _mean(values),
            **{segment: float(values[rows].mean()) for segment, rows in activity.items() if rows.any()},
        }
        for name, values in table.by_part.items()
    }


def personal_measures(table: Table, levels: Levels, activity: dict[str, NDArray[np.bool_]]) -> Measures:
    """Plain values, ready for JSON, of the parts that the predictions have.

    Args:
        table: the predictions.
        levels: the run's.
        activity: segment of users -> (n,) its rows; segments without rows are left out.

    Returns:
        Where the oracle knows the users' strictness, `effect` as of `effect_by_strictness` and, of the effect of the own past
        for all users and by segment, `slope` (over the levels of a candidate) and `rise` (over a user's candidates), each as of
        `against_strictness`; `weights`: segment -> mean weight of `own`, `peers` and `prior`.
    """
    found = _effects(table, table.oracle, levels, activity) if "effect_own" in table.by_part and table.oracle is not None else {}
    if WEIGHTS[0] in table.by_part:
        found["weights"] = {
            segment: {name.removeprefix("weight_"): float(table.by_part[name][rows].mean()) for name in WEIGHTS}
            for segment, rows in activity.items()
            if rows.any()
        }
    return {name: measures for name, measures in found.items() if measures}


def _effects(table: Table, oracle: Oracle, levels: Levels, activity: dict[str, NDArray[np.bool_]]) -> Measures:
    user, strictness = table.user_id, oracle.user_strictness
    grade = np.where(np.isnan(oracle.relevance), table.relevance, oracle.relevance)
    level = grade_levels(grade.astype(np.float32), levels.boundaries)
    effects = {who: table.by_part[f"effect_{who}"] for who in ("own", "peers")}
    found: Measures = {"effect": effect_by_strictness(effects, level, user, strictness, levels.count), "rise": {}, "slope": {}}
    for segment, r in {"all": np.ones(len(user), bool), **activity}.items():
        slopes = {"rise": rise(effects["own"][r], grade[r], user[r])}
        if "effect_own_slope" in table.by_part:
            slopes["slope"] = table.by_part["effect_own_slope"][r]
        for name, slope in slopes.items():
            if measures := against_strictness(slope, user[r], strictness[r]):
                found[name][segment] = measures
    return found


def effect_by_strictness(effects: dict[str, Array], level: Array, user_id: Array, strictness: Array, num_levels: int) -> Measures:
    """Mean effects of the past on candidates of each level for strict and for indifferent users, the upper and lower third.

    Args:
        effects: whose past -> (n,) in logits.
        level: (n,) in 0..K, 0: unknown.
        user_id: (n,).
        strictness: (n,) of the row's user, NaN unknown.
        num_levels: K.

    Returns:
        `strict` and `indifferent` -> number of `users`, and `by_level`: whose past -> (K,) with None where there are no rows;
        empty where the users do not differ.
    """
    known = ~np.isnan(strictness)
    _, first = np.unique(user_id[known], return_index=True)
    low, high = np.quantile(strictness[known][first], (1 / 3, 2 / 3)) if known.any() else (0.0, 0.0)
    if low == high:
        return {}
    groups = {"strict": strictness >= high, "indifferent": strictness <= low}
    return {
        name: {
            "users": len(np.unique(user_id[rows])),
            "by_level": {
                who: [_mean(effect[rows & (level == k)]) for k in range(1, num_levels + 1)] for who, effect in effects.items()
            },
        }
        for name, rows in groups.items()
    }


def against_strictness(slope: Array, user_id: Array, strictness: Array) -> Measures:
    """Whether those whose own past has an effect that rises most with the level are the strict ones.

    Args:
        slope: (n,) of the effect, in logits; NaN: none.
        user_id: (n,).
        strictness: (n,) of the row's user, NaN unknown.

    Returns:
        `users` and `correlation`, Spearman's, of their mean slope and their strictness; empty where one of them is all alike.
    """
    known = ~np.isnan(strictness) & ~np.isnan(slope)
    _, first, user = np.unique(user_id[known], return_index=True, return_inverse=True)
    mean = np.bincount(user, weights=slope[known]) / np.maximum(np.bincount(user), 1)
    correlation = spearman(mean, strictness[known][first])
    return {} if correlation is None else {"users": len(first), "correlation": correlation}


def rise(effect: Array, grade: Array, user_id: Array) -> Array:
    """How much larger the effect is for each grade that a candidate is better, by least squares over the user's candidates.

    Unlike the slope over the levels of one candidate, it reads only levels that candidates have: the click logit at another
    level than the known one is hardly trained.

    Args:
        effect: (n,) in logits.
        grade: (n,) NaN unknown.
        user_id: (n,).

    Returns:
        (n,) of the row's user; NaN where the known grades of the user's candidates are all alike.
    """
    weight = (~np.isnan(grade)).astype(np.float64)
    x, (_, user) = np.nan_to_num(grade).astype(np.float64), np.unique(user_id, return_inverse=True)
    count = np.maximum(np.bincount(user, weights=weight), 1)
    x, y = (values - (np.bincount(user, weights=weight * values) / count)[user] for values in (x, effect.astype(np.float64)))
    spread = np.bincount(user, weights=weight * x * x)
    shared = np.bincount(user, weights=weight * x * y)
    return np.divide(shared, spread, out=np.full(len(spread), np.nan), where=spread > 1e-9 * count)[user]


def _mean(values: Array) -> float | None:
    return float(values.mean()) if len(values) else None
