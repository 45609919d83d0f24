"""What the personal parts of a run do for which users, from its predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.config import Levels
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.training.metrics import spearman
from prectr_torchrec.training.predictions import WEIGHTS, Array, Table

Measures = dict[str, Any]


def personal_measures(table: Table, levels: Levels, activity: dict[str, NDArray[np.bool_]]) -> Measures:
    """Plain values, ready for JSON, of the parts that the predictions have.

    Args:
        table: the predictions.
        levels: the run's.
        activity: segment of users -> (n,) its rows; segments without rows are left out.

    Returns:
        `effect` as of `effect_by_strictness` and, of the effect of the own past, `slope` as of `slope_against_strictness` for
        all users and by segment, where the oracle knows the users' strictness; `weights`: segment -> mean weight of `own`,
        `peers` and `prior`.
    """
    found: Measures = {}
    if "effect_own" in table.by_part and table.oracle is not None:
        grade = np.where(np.isnan(table.oracle.relevance), table.relevance, table.oracle.relevance)
        level = grade_levels(grade.astype(np.float32), levels.boundaries)
        effects = {who: table.by_part[f"effect_{who}"] for who in ("own", "peers")}
        strictness = table.oracle.user_strictness
        found["effect"] = effect_by_strictness(effects, level, table.user_id, strictness, levels.count)
    if "effect_own_slope" in table.by_part and table.oracle is not None:
        slope, strictness = table.by_part["effect_own_slope"], table.oracle.user_strictness
        parts = {"all": np.ones(len(slope), bool), **activity}
        measured = {name: slope_against_strictness(slope[r], table.user_id[r], strictness[r]) for name, r in parts.items()}
        found["slope"] = {name: measures for name, measures in measured.items() if measures}
    if WEIGHTS[0] in table.by_part:
        found["weights"] = {
            segment: {name.removeprefix("weight_"): float(table.by_part[name][rows].mean()) for name in WEIGHTS}
            for segment, rows in activity.items()
            if rows.any()
        }
    return {name: measures for name, measures in found.items() if measures}


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


def slope_against_strictness(slope: Array, user_id: Array, strictness: Array) -> Measures:
    """Whether those whose own past has an effect that rises most with the level are the strict ones.

    Args:
        slope: (n,) effect at the highest level less that at the lowest, in logits.
        user_id: (n,).
        strictness: (n,) of the row's user, NaN unknown.

    Returns:
        `users` and `correlation`, Spearman's, of their mean slope and their strictness; empty where one of them is all alike.
    """
    known = ~np.isnan(strictness)
    _, first, user = np.unique(user_id[known], return_index=True, return_inverse=True)
    mean = np.bincount(user, weights=slope[known]) / np.maximum(np.bincount(user), 1)
    correlation = spearman(mean, strictness[known][first])
    return {} if correlation is None else {"users": len(first), "correlation": correlation}


def _mean(values: Array) -> float | None:
    return float(values.mean()) if len(values) else None
