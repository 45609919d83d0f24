"""Predictions beside the oracle of a simulated log."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_evaluation as build

from prectr_torchrec import metrics as m


def test_expected_auc_is_that_of_the_joined_rows(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    found = build.measure(data, oracle=tmp_path / "oracle.parquet")["oracle"]
    oracle = pq.read_table(tmp_path / "oracle.parquet").to_pydict()
    probability = dict(zip(oracle["item_id"], oracle["probability"], strict=True))
    shown = {item for item, exposed in zip(oracle["item_id"], oracle["exposed"], strict=True) if exposed}
    rows = [(s, item) for r in build.scored() for s, item in zip(r["click_probability"], r["item_id"], strict=True)]
    for part, chosen in {"all": rows, "shown": [r for r in rows if r[1] in shown]}.items():
        score, truth = np.array([s for s, _ in chosen]), np.array([probability[i] for _, i in chosen])
        assert found["expected_auc"][part]["model"] == pytest.approx(m.auc(score, truth))
        assert found["expected_auc"][part]["oracle"] == pytest.approx(m.auc(truth, truth))
        assert found["expected_auc"][part]["rows"] == len(chosen)


def test_rows_missing_on_either_side_of_the_oracle_are_counted(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet", drop=7)
    found = build.measure(data, oracle=tmp_path / "oracle.parquet")["oracle"]
    assert (found["rows"], found["unmatched_predictions"], found["unmatched_rows"]) == (193, 7, 0)


def test_shown_rows_alone_do_not_pass_for_all_candidates(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    table = pq.read_table(tmp_path / "oracle.parquet").to_pydict()
    table["exposed"] = [True] * len(table["exposed"])
    more = {"request_id": 1, "item_id": 1, "probability": 0.5, "exposed": False, "relevance": 1.0, "user_strictness": 0.0}
    build.write(tmp_path / "oracle.parquet", {n: [*v, more[n]] for n, v in table.items()})
    found = build.measure(data, oracle=tmp_path / "oracle.parquet")["oracle"]
    assert found["unmatched_rows"] == 1
    assert found["expected_auc"]["shown"]["model"] is not None
    assert found["expected_auc"]["all"]["model"] is None


def test_an_oracle_without_exposure_and_grades_measures_all_candidates(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    pq.write_table(pq.read_table(tmp_path / "oracle.parquet").drop(["exposed", "relevance"]), tmp_path / "oracle.parquet")
    found = build.measure(data, oracle=tmp_path / "oracle.parquet")["oracle"]["expected_auc"]
    assert found["all"]["model"] is not None
    assert found["shown"]["model"] is found["all"]["true_grade"] is found["all"]["share_of_the_way"] is None


def test_an_oracle_with_a_row_twice_is_refused(data, tmp_path):
    build.write(tmp_path / "oracle.parquet", {"request_id": [5, 5], "item_id": [1, 1], "probability": [0.1, 0.2]})
    with pytest.raises(ValueError, match="request_id 5, item_id 1 stands there more than once"):
        build.measure(data, oracle=tmp_path / "oracle.parquet")


def test_probabilities_are_held_against_the_true_ones_at_each_position(data, tmp_path):
    path = tmp_path / "oracle.parquet"
    build.write_oracle(path)
    assert build.measure(data, oracle=path)["oracle"]["calibration_by_position"] == []  # no examination, no truth at a position
    table = pq.read_table(path).to_pydict()
    examination = {1: 1.0, 2: 0.5}
    position = [item % 10 + 1 for item in table["item_id"]]
    build.write(path, {**table, "examination": [examination.get(p) for p in position]})
    found = {line["position"]: line for line in build.measure(data, oracle=path)["oracle"]["calibration_by_position"]}
    assert found.keys() == {"1", "2"}  # what is not shown has none
    predicted = {p: [] for p in position}
    for row in pq.read_table(data.parent / "predictions.parquet").to_pylist():
        predicted[row["position"]].append(row["click_probability_at_position"])
    for p, seen in examination.items():
        true = seen * np.mean([probability for probability, q in zip(table["probability"], position, strict=True) if q == p])
        assert found[str(p)]["observed"] == pytest.approx(true)
        assert found[str(p)]["calibration"] == pytest.approx(np.mean(predicted[p]) / true)
