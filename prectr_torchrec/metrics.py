"""Ranking, click and relevance measures over arrays of predictions; NumPy only, no torch.

Letters: n rows, G groups (users or requests), K relevance levels. Every function is O(n log n) and returns ``None`` where the
data cannot carry the measure (a missing class, no variance, no rows).

Labels may be soft: a label p in [0, 1] counts as a positive with weight p and a negative with weight 1 - p. With the true click
probability as the label, `auc` is the *expected* AUC: free of the luck of one draw of clicks and of the position they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.data.levels import grade_levels

Array = NDArray[Any]
Metrics = dict[str, Any]

NDCG_AT = (3, 10)
NORMAL_95 = 1.96
"""Standard errors on either side of a 95 % interval."""
LAST_POSITION = 21
"""From here on calibration does not tell positions apart."""


def auc(score: Array, label: Array) -> float | None:
    """Area under the ROC curve, ties counting half.

    Args:
        score: (n,) finite; higher ranks first.
        label: (n,) in [0, 1], hard or soft.
    """
    won, pairs = pair_weights(score, label, 1.0 - label, np.zeros(len(score), dtype=np.int64))
    return float(won[0] / pairs[0]) if len(pairs) and pairs[0] > 0 else None


def gauc(score: Array, label: Array, group: Array) -> float | None:
    """AUC within each group, averaged by the group's number of rows over the groups that have both classes.

    Args:
        score: (n,) finite.
        label: (n,) 0 or 1.
        group: (n,) ids of users or requests.
    """
    total, rows = (x.sum() for x in gauc_sums(score, label, dense(group)))
    return float(total / rows) if rows else None


def gauc_sums(score: Array, label: Array, group: Array) -> tuple[Array, Array]:
    """What `gauc` is the ratio of, so that it can be summed over ranks and resampled.

    Args:
        score: (n,) finite.
        label: (n,) 0 or 1.
        group: (n,) dense, 0..G-1.

    Returns:
        (G,) AUC times rows, and (G,) rows; both 0 for a group of one class.
    """
    won, pairs = pair_weights(score, label, 1.0 - label, group)
    rows = np.where(pairs > 0, np.bincount(group), 0.0)
    return won / np.where(pairs > 0, pairs, 1.0) * rows, rows


def pair_accuracy(score: Array, grade: Array, group: Array) -> float | None:
    """Share of the pairs of one group with different grades that the score puts in the right order, ties counting half.

    Each such pair differs first in exactly one bit of its grades' ranks, so log2(distinct grades) AUC-like passes count it once.

    Args:
        score: (n,) finite.
        grade: (n,) finite.
        group: (n,) ids of queries.
    """
    if not len(score):
        return None
    rank, group = dense(grade), dense(group)
    ranks = int(rank.max()) + 1
    total_won = total_pairs = 0.0
    for bit in range(ranks.bit_length()):
        prefix, one = rank >> (bit + 1), (rank >> bit & 1).astype(np.float64)
        won, pairs = pair_weights(score, one, 1.0 - one, dense(group * ranks + prefix))
        total_won, total_pairs = total_won + won.sum(), total_pairs + pairs.sum()
    return float(total_won / total_pairs) if total_pairs else None


def ndcg(score: Array, gain: Array, group: Array, k: int) -> float | None:
    """NDCG@k averaged over the groups with any gain; rows of equal score share the expected gain of their places.

    Args:
        score: (n,) finite.
        gain: (n,) >= 0.
        group: (n,) ids of requests.
        k: places counted, >= 1.
    """
    found, some = (x.sum() for x in ndcg_sums(score, gain, dense(group), k))
    return float(found / some) if some else None


def ndcg_sums(score: Array, gain: Array, group: Array, k: int) -> tuple[Array, Array]:
    """What `ndcg` is the ratio of, so that it can be resampled; `group` (n,) is dense, 0..G-1.

    Returns:
        (G,) NDCG@k, and (G,) 1; both 0 for a group without any gain.
    """
    ideal = dcg(gain, gain, group, k)
    return dcg(score, gain, group, k) / np.where(ideal > 0, ideal, 1.0), np.where(ideal > 0, 1.0, 0.0)


def log_loss(probability: Array, label: Array) -> float | None:
    """Mean binary cross-entropy in nats; probabilities are kept 1e-7 away from 0 and 1, float32's own resolution there."""
    return float(np.mean(log_losses(probability, label))) if len(label) else None


def log_losses(probability: Array, label: Array) -> Array:
    """(n,) float64, of each row."""
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return -(label * np.log(p) + (1 - label) * np.log1p(-p))


def normalized_entropy(probability: Array, label: Array) -> float | None:
    """Log loss divided by that of always predicting the observed rate; below 1 is better than knowing the rate alone."""
    loss, entropy = log_loss(probability, label), rate_entropy(float(np.mean(label)) if len(label) else 0.0)
    return None if loss is None or entropy is None else loss / entropy


def rate_entropy(rate: float) -> float | None:
    """Log loss of always predicting the observed rate; None where all labels are of one class."""
    return float(-(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))) if 0 < rate < 1 else None


def sigmoid(logit: Array) -> Array:
    """(n,) probabilities, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -logit)))


def calibration(probability: Array, label: Array) -> float | None:
    """Sum of predictions over sum of labels; 1 is right, above 1 promises too much."""
    observed = float(np.sum(label, dtype=np.float64))
    return float(np.sum(probability, dtype=np.float64)) / observed if observed > 0 else None


def reliability(probability: Array, label: Array, bins: int = 20) -> list[Metrics]:
    """The reliability curve: means of prediction and label in bins of about equal size, from the lowest prediction up."""
    parts = np.array_split(np.argsort(probability, kind="stable"), min(bins, len(probability)) or 1)
    return [
        {"predicted": float(np.mean(probability[i], dtype=np.float64)), "observed": float(np.mean(label[i])), "rows": len(i)}
        for i in parts
        if len(i)
    ]


def calibration_by_position(probability: Array, click: Array, position: Array) -> list[Metrics]:
    """Predicted over observed clicks, or over expected ones, at each logged position, from the top down.

    Args:
        probability: (n,) predicted at the logged position.
        click: (n,) 0 or 1, or the true probability of a click, NaN where neither is known.
        position: (n,) from 1, 0 where it was not logged; those from `LAST_POSITION` on are one line.

    Returns:
        Per position `position`, `rows`, `clicks`, means `predicted` and `observed`, and their ratio `calibration`.
    """
    known = ~np.isnan(click)
    p, y, place = probability[known], click[known], np.minimum(position[known], LAST_POSITION)
    lines = []
    for k in np.unique(place):
        here = place == k
        lines.append(
            {
                "position": "not logged" if k == 0 else f"{k}+" if k == LAST_POSITION else str(k),
                "rows": int(here.sum()),
                "clicks": round(float(y[here].sum(dtype=np.float64))),
                "predicted": float(np.mean(p[here], dtype=np.float64)),
                "observed": float(np.mean(y[here])),
                "calibration": calibration(p[here], y[here]),
            }
        )
    return lines


def spearman(a: Array, b: Array) -> float | None:
    """Rank correlation, equal values sharing their mean rank."""
    if not len(a):
        return None
    x, y = (r - r.mean() for r in (_mean_ranks(a), _mean_ranks(b)))
    norm = float(np.sqrt(np.sum(x * x) * np.sum(y * y)))
    return float(np.sum(x * y)) / norm if norm > 0 else None


def quadratic_kappa(a: Array, b: Array, levels: int) -> float | None:
    """Cohen's kappa with squared weights of two gradings.

    Args:
        a: (n,) integers in 1..levels.
        b: (n,) integers in 1..levels.
        levels: K.
    """
    if not len(a):
        return None
    values = np.arange(1, levels + 1)
    p_a, p_b = (np.bincount(x - 1, minlength=levels) / len(x) for x in (a, b))
    expected = float(np.sum(np.square(values[:, None] - values) * np.outer(p_a, p_b)))
    return 1 - float(np.mean(np.square(a - b))) / expected if expected > 0 else None


def share_of_the_way(value: float | None, start: float | None, end: float | None) -> float | None:
    """(value - start) / (end - start): 0 is no better than `start`, 1 as good as `end`."""
    if value is None or start is None or end is None or start == end:
        return None
    return (value - start) / (end - start)


def ranking_metrics(
    score: Array,
    click: Array,
    user: Array,
    request: Array,
    ndcg_at: Sequence[int] = NDCG_AT,
    *,
    ranking: Array | None = None,
) -> Metrics:
    """How well a score tells clicks from other rows, and an order puts them first, over the rows that have a label.

    Args:
        score: (n,) higher for a likelier click.
        click: (n,) 0 or 1, NaN where there is no label.
        user: (n,) ids; 0 is nobody known, and no group.
        request: (n,) ids.
        ndcg_at: the k of NDCG@k.
        ranking: (n,) higher ranks first, what NDCG is of; None: the score.
    """
    known = ~np.isnan(click)
    s, y, u, r = score[known], click[known].astype(np.float64), user[known], request[known]
    order = s if ranking is None else ranking[known]
    return {
        "rows": len(y),
        "clicks": int(y.sum()),
        "auc": auc(s, y),
        "gauc_user": gauc(s[u != 0], y[u != 0], u[u != 0]),
        "gauc_request": gauc(s, y, r),
        **{f"ndcg@{k}": ndcg(order, y, r, k) for k in ndcg_at},
    }


def label_metrics(
    probability: Array, at_position: Array, label: Array, user: Array, request: Array, *, ranking: Array
) -> Metrics:
    """`ranking_metrics` and `probability_metrics` of any label; its `positives` are called clicks there.

    Args:
        probability: (n,) with the position held at its reference.
        at_position: (n,) at the logged positions.
        label: (n,) 0 or 1, NaN where it is not known.
        user: (n,) ids; 0 is nobody known, and no group.
        request: (n,) ids.
        ranking: (n,) higher ranks first, what NDCG is of.
    """
    found = ranking_metrics(probability, label, user, request, ranking=ranking) | probability_metrics(at_position, label)
    return {"positives" if name == "clicks" else name: value for name, value in found.items()}


def captured_value(score: Array, value: Array, request: Array, k: int) -> float | None:
    """Share of all value that stands among the first k places of its request; rows of equal score share their places' value.

    Args:
        score: (n,) higher ranks first.
        value: (n,) of each row; NaN where it is not known, and left out.
        request: (n,) ids.
        k: places counted, >= 1.
    """
    known = ~np.isnan(value)
    total = float(value[known].sum(dtype=np.float64))
    found = _of_first_places(score[known], value[known], dense(request[known]), np.arange(k + 1.0))
    return float(found.sum()) / total if total > 0 else None


def probability_metrics(probability: Array, click: Array) -> Metrics:
    """How well probabilities predict the clicks, over the rows that have a label.

    Args:
        probability: (n,) of a click where the row was shown: at its logged position.
        click: (n,) 0 or 1, NaN where there is no label.
    """
    known = ~np.isnan(click)
    p, y = probability[known], click[known].astype(np.float64)
    return {
        "normalized_entropy": normalized_entropy(p, y),
        "log_loss": log_loss(p, y),
        "calibration": calibration(p, y),
    }


def grade_ndcg(score: Array, grade: Array, request: Array, grade_min: float, ndcg_at: Sequence[int] = NDCG_AT) -> Metrics:
    """NDCG@k of the final ranking against the grades, gain 2^(grade - grade_min) - 1, over the rows that have a grade."""
    known = ~np.isnan(grade)
    s, g, r = score[known], np.exp2(grade[known].astype(np.float64) - grade_min) - 1, request[known]
    return {f"grade_ndcg@{k}": ndcg(s, g, r, k) for k in ndcg_at}


def relevance_metrics(
    probabilities: Array,
    grade: Array,
    query: Array,
    *,
    boundaries: list[float],
    level_grades: Array | Sequence[float],
) -> Metrics:
    """Measures of the relevance tower against grades; one row a pair of query and item.

    Positives of the AUC are the highest level and the upper half of the one below it, negatives all below these two levels; with
    two levels these are the classes.

    Args:
        probabilities: (n, K) the tower's level distribution; a row with NaN is left out.
        grade: (n,) float32 raw grades, NaN where there is none.
        query: (n,) ids.
        boundaries: (K - 1,) upper bounds of the levels.
        level_grades: (K,) the grade that stands for each level.
    """
    known = ~np.isnan(grade) & np.isfinite(probabilities).all(axis=1)
    pi, g, q = probabilities[known].astype(np.float64), grade[known], query[known]
    expected = pi @ np.asarray(level_grades)
    second = np.array(boundaries[-2:], dtype=np.float32)  # bounds of the second highest level
    high, low = g > second.mean(), g <= second[0]
    judged = high | low
    return {
        "pairs": len(g),
        "queries": len(np.unique(q)),
        "spearman": spearman(expected, g),
        "auc": auc(expected[judged], high[judged].astype(np.float64)),
        "quadratic_kappa": quadratic_kappa(pi.argmax(axis=1) + 1, grade_levels(g, boundaries), len(boundaries) + 1),
        "pair_accuracy": pair_accuracy(expected, g, q),
    }


def pair_weights(score: Array, positive: Array, negative: Array, group: Array) -> tuple[Array, Array]:
    """Per group, the weight of (positive, negative) pairs that the score orders rightly, and of all of them.

    Args:
        score: (n,).
        positive: (n,) weights as a positive.
        negative: (n,) weights as a negative.
        group: (n,) dense, 0..G-1.

    Returns:
        Two (G,) float64 arrays.
    """
    assert np.isfinite(score).all(), "scores must be finite"
    if not len(score):
        return np.zeros(0), np.zeros(0)
    order, starts, run_group = tie_runs(score, group)
    p = np.add.reduceat(positive[order].astype(np.float64), starts)  # (runs,)
    n = np.add.reduceat(negative[order].astype(np.float64), starts)
    p_group, n_group = np.bincount(run_group, p), np.bincount(run_group, n)  # (G,)
    n_earlier_groups = np.cumsum(n_group) - n_group
    n_below = np.cumsum(n) - n - n_earlier_groups[run_group]
    return np.bincount(run_group, p * (n_below + n / 2)), p_group * n_group


def dcg(score: Array, gain: Array, group: Array, k: int) -> Array:
    """(G,) discounted gain of the first k places of each group."""
    return _of_first_places(score, gain, group, np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))]))


def _of_first_places(score: Array, gain: Array, group: Array, discounts: Array) -> Array:
    """(G,) gain of each group times what places count; `discounts`: (k + 1,) of the first 0..k places together."""
    k = len(discounts) - 1
    if not len(score):
        return np.zeros(0)
    order, starts, run_group = tie_runs(-score.astype(np.float64), group)
    sizes = np.diff(np.append(starts, len(score)))
    rows_before_group = np.concatenate([[0], np.cumsum(np.bincount(group))[:-1]])
    first = starts - rows_before_group[run_group]  # place of a run's first row within its group, from 0
    discount = discounts[np.minimum(first + sizes, k)] - discounts[np.minimum(first, k)]
    return np.bincount(run_group, np.add.reduceat(gain[order].astype(np.float64), starts) / sizes * discount)


def tie_runs(score: Array, group: Array) -> tuple[Array, Array, Array]:
    """Rows in order of (group, score), where each run of equal (group, score) starts in it, and the run's group."""
    order = np.lexsort((score, group))
    s, g = score[order], group[order]
    starts = np.flatnonzero(np.concatenate([[True], (s[1:] != s[:-1]) | (g[1:] != g[:-1])]))
    return order, starts, g[starts]


def dense(values: Array) -> NDArray[np.int64]:
    """Ranks among the distinct values, from 0."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _mean_ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
