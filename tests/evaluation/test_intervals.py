"""Intervals of measures and of differences between runs: what they hold, and which rows may be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_evaluation as build

from prectr_torchrec import metrics as m
from prectr_torchrec.evaluation.intervals import Scored, compare_runs, label_intervals
from prectr_torchrec.evaluation.label_columns import LabelColumns, label_columns

RNG = np.random.default_rng(0)
REQUESTS, SHOWN = 400, 5


def drawn(seed: int, skill: float = 1.0) -> dict[str, Any]:
    """A log in which requests differ in how likely a click is, and a ranker that knows `skill` of what moves clicks."""
    rng = np.random.default_rng(seed)
    request = np.repeat(np.arange(REQUESTS), SHOWN)
    ease, appeal = rng.normal(size=REQUESTS)[request], rng.normal(size=len(request))
    truth = 1 / (1 + np.exp(1 - ease - appeal))
    score = 1 / (1 + np.exp(1 - ease - skill * appeal - (1 - skill) * rng.normal(size=len(request))))
    return {
        "request_id": request,
        "item_id": np.tile(np.arange(SHOWN), REQUESTS),
        "click_probability": score,
        "click_probability_at_position": score,
        "click": (rng.random(len(request)) < truth).astype(float),
    }


def write(folder: Path, rows: dict[str, Any], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows | changes), folder / "predictions.parquet")
    return folder / "predictions.parquet"


def of_click(rows: dict[str, Any]) -> Scored:
    columns = LabelColumns(rows["click_probability"], rows["click_probability_at_position"], rows["click"])
    return Scored({"click": columns}, rows["click_probability"], rows["request_id"])


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    logs = [drawn(seed) for seed in range(40)]
    for name in ("auc", "ndcg@3"):
        values = [m.ranking_metrics(r["click_probability"], r["click"], r["request_id"] + 1, r["request_id"])[name] for r in logs]
        truth = float(np.mean(values))
        ends = [label_intervals(of_click(rows))["click"][name] for rows in logs]
        held = np.mean([low <= truth <= high for low, high in ends if low is not None])
        assert 0.85 <= held <= 1, name


def test_of_a_difference_the_interval_is_narrower_than_of_either_value(tmp_path: Path) -> None:
    rows = drawn(1)
    other = rows | {
        "click_probability": np.clip(rows["click_probability"] + RNG.normal(0, 0.01, len(rows["click"])), 0.001, 0.999)
    }
    found = compare_runs(write(tmp_path / "a", rows), write(tmp_path / "b", other))["click"]["auc"]
    low, high = label_intervals(of_click(rows))["click"]["auc"] or [0.0, 0.0]
    assert found["interval"][1] - found["interval"][0] < (high - low) / 3
    assert found["difference"] == pytest.approx(found["value"] - found["against"])
    assert found["value"] == pytest.approx(m.auc(rows["click_probability"], rows["click"]))


def test_a_better_ranker_is_told_from_a_worse_one_and_not_from_itself(tmp_path: Path) -> None:
    good, bad = drawn(2), drawn(2, skill=0.3)
    paths = write(tmp_path / "a", good), write(tmp_path / "b", bad)
    for name, better in {"auc": 1, "gauc_request": 1, "ndcg@3": 1, "normalized_entropy": -1}.items():
        assert min(better * end for end in compare_runs(*paths)["click"][name]["interval"]) > 0, name
    assert compare_runs(paths[0], paths[0])["click"]["auc"]["interval"] == [0, 0]


def test_rows_are_matched_by_request_and_item_whatever_their_order(tmp_path: Path) -> None:
    rows = drawn(3)
    order = RNG.permutation(len(rows["click"]))
    turned = {name: values[order] for name, values in rows.items()}
    assert compare_runs(write(tmp_path / "a", rows), write(tmp_path / "b", turned))["click"]["ndcg@10"]["difference"] == 0


def test_other_candidates_are_refused(tmp_path: Path) -> None:
    rows = drawn(4)
    ours = write(tmp_path / "a", rows)
    for other in ({name: values[:-1] for name, values in rows.items()}, rows | {"item_id": rows["item_id"] + 1}):
        with pytest.raises(ValueError, match=r"b/predictions.parquet: 1,999 cand|2,000 candidates that are not the 2,000 of"):
            compare_runs(ours, write(tmp_path / "b", other))


def test_a_label_of_one_class_or_one_request_has_no_interval() -> None:
    rows = drawn(5)
    assert label_intervals(of_click(rows | {"click": np.zeros(len(rows["click"]))})) == {}
    assert label_intervals(of_click(rows | {"click": np.full(len(rows["click"]), np.nan)})) == {}
    alone = np.where(rows["request_id"] == 0, np.arange(len(rows["click"])) % 2, np.nan)
    assert label_intervals(of_click(rows | {"click": alone})) == {}


def test_further_labels_have_theirs(tmp_path: Path) -> None:
    rows = drawn(6)
    fields = label_columns(["click", "order"], {"click": 1.0, "order": 5.0})
    values = (rows["click_probability"] / 2, rows["click_probability"] / 2, rows["click"], rows["click_probability"])
    table = pa.table(rows)
    for field, value in zip(fields, values, strict=True):
        table = table.append_column(field, pa.array(value).cast(field.type))
    (tmp_path / "a").mkdir()
    pq.write_table(table, tmp_path / "a" / "predictions.parquet")
    found = compare_runs(tmp_path / "a" / "predictions.parquet", tmp_path / "a" / "predictions.parquet")
    assert list(found) == ["click", "order"] and found["order"]["auc"]["value"] == found["click"]["auc"]["value"]


def test_evaluate_measures_them(data: Path) -> None:
    measured = build.measure(data)
    low, high = measured["intervals"]["click"]["auc"]
    assert low <= measured["clicks"]["auc"] <= high
    assert json.loads(json.dumps(measured["intervals"])) == measured["intervals"]
