"""All measures of a predictions file, overall and by segment, as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from prectr_torchrec import metrics as m
from prectr_torchrec.config.data import Levels
from prectr_torchrec.config.score import CLICK_ALONE, plain_score
from prectr_torchrec.data.log_ids import LogIds
from prectr_torchrec.data.schema import MANIFEST, load_manifest
from prectr_torchrec.evaluation import predictions as p
from prectr_torchrec.evaluation.comparison import compare_with_logged_order
from prectr_torchrec.evaluation.intervals import Scored, label_intervals
from prectr_torchrec.evaluation.label_columns import LabelColumns
from prectr_torchrec.evaluation.parts import mean_parts, personal_measures

PAST = {"0": (0, 0), "1-19": (1, 19), "20-99": (20, 99), "100+": (100, np.inf)}
"""Segments by the impressions of the user before the request, both ends included."""


def measure(predictions: Path, *, split: Path, train: Path, oracle: Path | None, levels: Levels, memory: str) -> dict[str, Any]:
    """All measures of a predictions file, ready for JSON; None stands where the data cannot carry one.

    Args:
        predictions: the merged file.
        split: folder of the samples that were scored; the manifest beside it has the examination of positions.
        train: folder of the training samples, with `judgments` beside it, which say what was trained on; either may be missing.
        oracle: as of `predictions.load_table`.
        levels: the run's.
        memory: DuckDB's limit.
    """
    zero = LogIds.of_split(split).zero
    table = p.load_table(predictions, oracle, memory, zero)
    prepared = load_manifest(split.parent) if (split.parent / MANIFEST).is_file() else {}
    known, leveled = ~np.isnan(table.click), p.LEVELS in pq.read_schema(predictions).names
    segments = list(_segments(table))
    activity = {name: mask for by, name, mask in segments if by == "user"}
    return {
        "split": split.name,
        "simulated": bool(prepared.get("simulated", False)),
        "rows": len(table.request_id),
        "requests": len(np.unique(table.request_id)),
        "clicks": m.ranking_metrics(table.click_probability, table.click, table.user_id, table.request_id, ranking=table.score),
        "clicks_at_position": {
            **m.ranking_metrics(table.click_probability_at_position, table.click, table.user_id, table.request_id),
            **m.probability_metrics(table.click_probability_at_position, table.click),
        },
        "calibration_by_position": m.calibration_by_position(table.click_probability_at_position, table.click, table.position),
        "labels": _labels(table),
        "intervals": label_intervals(Scored(_by_label(table), table.score, m.dense(table.request_id))),
        "value": _value(table),
        "logged_order": compare_with_logged_order(
            table.score,
            table.click,
            table.position,
            table.request_id,
            examination=prepared.get("examination", [1.0]),
        ),
        "ranking_against_grades": m.grade_ndcg(table.score, table.relevance, table.request_id, levels.grade_min),
        "relevance": _relevance(p.load_graded_pairs(predictions, split, train, memory, zero), levels, train) if leveled else {},
        "levels_in_order": float(order.mean()) if (order := table.by_part.get("levels_in_order")) is not None else None,
        "oracle": _against_oracle(table),
        "segments": [{"by": by, "segment": name, **_segment(table, mask)} for by, name, mask in segments],
        "parts": mean_parts(table, activity),
        "personal": personal_measures(table, levels, activity),
        "reliability": m.reliability(table.click_probability_at_position[known], table.click[known]),
    }


def _by_label(table: p.Table) -> dict[str, LabelColumns]:
    click = LabelColumns(table.click_probability, table.click_probability_at_position, table.click)
    return {"click": click, **table.labels}


def _labels(table: p.Table) -> dict[str, m.Metrics]:
    """Of each label the same measures, where there is one beside the click."""
    ids = (table.user_id, table.request_id)
    labels = _by_label(table) if table.labels else {}
    return {name: m.label_metrics(*columns, *ids, ranking=table.score) for name, columns in labels.items()}


def _value(table: p.Table) -> dict[str, Any]:
    """What labels are worth, and the share of it that the first places have: by the score, by the click probability alone, and
    at best; where the score is another one than the click probability."""
    if table.worth == CLICK_ALONE:
        return {}
    seen = {"click": table.click} | {name: columns.value for name, columns in table.labels.items()}
    value = sum((worth * seen[name].astype(np.float64) for name, worth in table.worths().items()), np.zeros(len(table.click)))
    orders = {"score": table.score, "click_probability": table.click_probability, "best": np.nan_to_num(value)}
    shares = {
        f"captured@{k}": {name: m.captured_value(order, value, table.request_id, k) for name, order in orders.items()}
        for k in m.NDCG_AT
    }
    return {"worth": plain_score(table.worth), **shares}


def _relevance(pairs: p.GradedPairs, levels: Levels, train: Path) -> dict[str, m.Metrics]:
    """Of all graded pairs; with training samples also of those that were trained on, and of the others by their query."""

    def measured(mask: m.Array) -> m.Metrics:
        return m.relevance_metrics(
            pairs.relevance_probabilities.reshape(-1, levels.count)[mask],
            pairs.relevance[mask],
            pairs.query_id[mask],
            boundaries=levels.boundaries,
            level_grades=levels.grades,
        )

    everything = {"all": measured(np.ones(len(pairs.query_id), dtype=bool))}
    if not train.is_dir():
        return everything
    new_pair = ~pairs.trained_on
    return everything | {
        "trained on": measured(pairs.trained_on),
        "known query": measured(new_pair & pairs.known_query),
        "new query": measured(new_pair & ~pairs.known_query),
    }


def _against_oracle(table: p.Table) -> dict[str, Any] | None:
    oracle = table.oracle
    if oracle is None:
        return None
    joined = ~np.isnan(oracle.probability)
    shown = joined & (oracle.exposed == 1)
    labelled = joined & ~np.isnan(table.click)
    return {
        "rows": oracle.rows,
        "unmatched_rows": oracle.unmatched,
        "unmatched_shown_rows": oracle.unmatched_exposed,
        "unmatched_predictions": int((~joined).sum()),
        "expected_auc": {"shown": _expected_auc(table, shown), "all": _expected_auc(table, joined & _whole_sets(oracle))},
        "logged_auc": {
            "true_grade": _grade_auc(oracle.relevance[labelled], table.click[labelled]),
            "oracle": m.auc(oracle.probability[labelled], table.click[labelled]),
        },
        "calibration": m.calibration(table.click_probability[shown], oracle.probability[shown]),
        "calibration_by_position": m.calibration_by_position(
            table.click_probability_at_position, oracle.probability * oracle.examination, table.position
        ),
    }


def _expected_auc(table: p.Table, mask: m.Array) -> m.Metrics:
    assert table.oracle is not None
    probability = table.oracle.probability[mask]
    model, best = m.auc(table.click_probability[mask], probability), m.auc(probability, probability)
    grade = _grade_auc(table.oracle.relevance[mask], probability)
    return {
        "rows": len(probability),
        "true_grade": grade,
        "model": model,
        "oracle": best,
        "share_of_the_way": m.share_of_the_way(model, grade, best),
    }


def _grade_auc(grade: m.Array, label: m.Array) -> float | None:
    return None if np.isnan(grade).any() else m.auc(grade, label)


def _whole_sets(oracle: p.Oracle) -> m.Array:
    """Every row, or none where no unexposed candidate is predicted: figures on shown rows must not pass for figures on all."""
    unexposed = ~np.isnan(oracle.probability) & (oracle.exposed != 1)
    return np.full(len(unexposed), unexposed.any() or oracle.unmatched == 0)


def _segments(table: p.Table) -> Iterator[tuple[str, str, m.Array]]:
    """By the past that a request really has, strictly before it: of its user, of its query with others, of the item."""
    for name, (low, high) in PAST.items():
        yield "user", name, (table.user_events >= low) & (table.user_events <= high)
    for by, events in (("query", table.query_events), ("item", table.item_shown)):
        yield by, "0", events == 0
        yield by, "some", events > 0


def _segment(table: p.Table, mask: m.Array) -> m.Metrics:
    """Ranking measured at the reference position, probabilities at the logged one, where the clicks come from."""
    result = m.ranking_metrics(
        table.click_probability[mask], table.click[mask], table.user_id[mask], table.request_id[mask], ranking=table.score[mask]
    ) | m.probability_metrics(table.click_probability_at_position[mask], table.click[mask])
    expected: dict[str, float | None] = {"expected_auc_shown": None, "expected_auc_all": None}
    if table.oracle is not None:
        joined = mask & ~np.isnan(table.oracle.probability)
        subsets = {"shown": joined & (table.oracle.exposed == 1), "all": joined & _whole_sets(table.oracle)}
        for part, rows in subsets.items():
            expected[f"expected_auc_{part}"] = m.auc(table.click_probability[rows], table.oracle.probability[rows])
    return {**result, **expected}
