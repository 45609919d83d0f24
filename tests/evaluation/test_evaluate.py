"""What stands around scoring: parts of ranks, merge, joins, segments, table."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_evaluation as build
from ranks import run_ranks

from prectr_torchrec import metrics as m
from prectr_torchrec.config.files import dump_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.evaluation.evaluate import format_metrics, main
from prectr_torchrec.evaluation.predictions import sample_files
from prectr_torchrec.runs.workspace import write_json


def test_two_ranks_leave_the_same_file_and_metrics_as_one(data, tmp_path):
    run_ranks(2, "small_evaluation:main", data=data, out=tmp_path / "two")
    alone = build.measure(data)
    assert pq.read_table(tmp_path / "two/predictions.parquet").equals(pq.read_table(tmp_path / "predictions.parquet"))
    assert json.loads((tmp_path / "two/metrics.json").read_text(encoding="utf-8")) == alone


def test_predictions_keep_the_order_of_the_samples(data):
    build.measure(data)
    samples = [r for f in sample_files(data / "test") for r in pq.read_table(f).to_pylist()]
    expected = [(s["request_id"], item) for s in samples for item in s["candidate_item_id"]]
    found = build.predicted_rows(data)
    assert list(zip(found["request_id"], found["item_id"], strict=True)) == expected


def test_predictions_hold_what_was_scored_and_null_where_missing(data):
    build.measure(data)
    found, scored = build.predicted_rows(data), next(iter(build.scored()))
    for place, item in enumerate(scored["item_id"]):
        row = {name: values[found["item_id"].index(item)] for name, values in found.items()}
        assert row["click_probability"] == scored["click_probability"][place]
        assert row["relevance_probabilities"] == scored["relevance_probabilities"][place].tolist()
        assert row["click"] == scored["click"][place]
        assert row["relevance"] == (None if np.isnan(scored["relevance"][place]) else scored["relevance"][place])
        assert row["query_id"] == row["request_id"] % 5


def test_nothing_but_the_predictions_is_left_behind(data):
    build.measure(data)
    assert sorted(p.name for p in data.parent.iterdir()) == ["data", "predictions.parquet"]


def test_parts_of_a_killed_run_are_not_taken_for_rows(data):
    stale = data.parent / "predictions.parquet.parts"
    stale.mkdir()
    (stale / "part-00001.parquet").write_bytes(b"half a file")
    assert build.measure(data)["rows"] == build.REQUESTS * build.CANDIDATES


def test_a_lost_row_is_noticed(data):
    rows = list(build.scored())[1:]
    with pytest.raises(AssertionError, match="200 candidates, 195 rows scored"):
        build.measure(data, rows)


def test_metrics_are_those_of_the_arrays(data):
    found, rows = build.measure(data), list(build.scored())
    probability, click, request = (np.concatenate([r[n] for r in rows]) for n in ("click_probability", "click", "request_id"))
    assert found["clicks"]["auc"] == pytest.approx(m.auc(probability, click))
    assert found["clicks"]["gauc_request"] == pytest.approx(m.gauc(probability, click, request))
    assert found["simulated"] is True


def test_each_graded_pair_counts_once_for_the_tower(data):
    assert build.measure(data)["relevance"]["all"]["pairs"] == sum(int((~np.isnan(r["relevance"])).sum()) for r in build.scored())


def test_segments_follow_the_past_that_a_request_has(data):
    rows = {(s["by"], s["segment"]): s["rows"] for s in build.measure(data)["segments"]}
    requests = [int(r["request_id"][0]) for r in build.scored()]
    users = {name: sum(request % 7 in users for request in requests) for name, users in build.SEGMENTS.items()}
    assert {name: rows["user", name] // build.CANDIDATES for name in build.SEGMENTS} == users
    assert rows["query", "0"] == build.CANDIDATES * sum(request % 5 == 0 for request in requests)
    assert rows["item", "0"] == 3 * len(requests) and rows["item", "some"] == 2 * len(requests)


def test_a_user_without_training_impressions_but_with_a_past_is_not_cold(data):
    """All users of the test split are new to the training samples; those with events are in the segment of these."""
    cold = next(s for s in build.measure(data, train=data / "nowhere")["segments"] if (s["by"], s["segment"]) == ("user", "0"))
    assert cold["rows"] == build.CANDIDATES * sum(int(r["request_id"][0]) % 7 == 0 for r in build.scored())


def test_graded_pairs_that_were_trained_on_are_not_called_new(data):
    found = build.measure(data)["relevance"]
    assert {part: measures["pairs"] for part, measures in found.items()} == {
        "all": 80,
        "trained on": 3,
        "known query": 29,
        "new query": 48,
    }


def test_a_query_of_the_judgments_alone_is_not_new(data):
    shutil.rmtree(data / "judgments")
    assert build.measure(data)["relevance"]["new query"]["pairs"] == 48 + 16


def test_without_a_training_split_nothing_is_said_of_what_was_trained_on(data):
    found = build.measure(data, train=data / "nowhere")
    assert list(found["relevance"]) == ["all"]
    assert "not known" in format_metrics({"run": "small", **found}) and "--train-data" in format_metrics(
        {"run": "small", **found}
    )


def test_positions_and_the_past_of_the_samples_are_in_the_predictions(data):
    build.measure(data)
    found = build.predicted_rows(data)
    assert found["position"] == [item % 10 + 1 for item in found["item_id"]]
    assert found["user_events"] == [build.PAST[request % 7] for request in found["request_id"]]
    assert found["query_events"] == [request % 5 for request in found["request_id"]]
    assert found["item_shown"] == [item % 2 for item in found["item_id"]]


def test_calibration_is_measured_at_each_logged_position(data):
    found = build.measure(data)["calibration_by_position"]
    rows = list(build.scored())
    assert [line["position"] for line in found] == ["1", "2", "3", "4", "5"]
    for place, line in enumerate(found):
        click = np.array([r["click"][place] for r in rows])
        predicted = np.array([1 / (1 + np.exp(-r["logged_logit"][place])) for r in rows])
        assert (line["rows"], line["clicks"]) == (build.REQUESTS, click.sum())
        assert line["calibration"] == pytest.approx(predicted.sum() / click.sum(), rel=1e-5)


def test_probabilities_at_the_reference_position_are_not_held_against_logged_clicks(data):
    found = build.measure(data)
    assert not {"calibration", "normalized_entropy", "log_loss"} & found["clicks"].keys()
    assert {"calibration", "normalized_entropy", "log_loss"} <= found["clicks_at_position"].keys()


def test_the_logged_order_is_measured_beside_the_model(data):
    found = build.measure(data)["logged_order"]
    rows = list(build.scored())
    click, place, request, ours = (
        np.concatenate([r[n] for r in rows]) for n in ("click", "position", "request_id", "click_probability")
    )
    for name, score in {"logged_order": -place.astype(float), "model": ours.astype(float)}.items():
        measured = {measure: values[name] for measure, values in found["logged"].items()}
        expected = m.ranking_metrics(score, click, request, request)
        assert measured == {measure: pytest.approx(expected[measure]) for measure in measured}
    assert found["examination"] == build.EXAMINATION
    assert found["verdict"]["text"] in format_metrics({"run": "small", **build.measure(data)})


def test_grades_that_the_model_could_not_see_are_said_to_be_hidden(data):
    assert build.measure(data)["grades"] == "visible"
    hidden = build.measure(data, grades="hidden")
    assert hidden["grades"] == "hidden" and hidden["relevance"] == build.measure(data)["relevance"]
    assert "grades were hidden" in format_metrics({"run": "small", **hidden})


def test_predictions_at_the_logged_position_are_measured_beside_the_reference(data):
    found = build.measure(data)
    assert found["clicks_at_position"]["auc"] == 1.0
    assert found["clicks"]["auc"] < 1.0


def test_candidates_without_clicks_have_no_click_metrics(data):
    found = build.measure(data, build.scored(labels=False))
    assert found["clicks"]["auc"] is None
    assert found["reliability"] == []
    assert found["relevance"]["all"]["spearman"] is not None


def test_without_any_grade_clicks_are_measured_alone(data):
    rows = [part | {"relevance": np.full(len(part["relevance"]), np.nan, np.float32)} for part in build.scored()]
    measured = build.measure(data, rows=rows)
    assert measured["clicks"] == build.measure(data)["clicks"]
    assert all(value is None for name, value in measured["relevance"]["all"].items() if name not in ("pairs", "queries"))


@pytest.mark.parametrize(
    ("flag", "name", "error", "message"),
    [
        ("--oracle", "nowhere.parquet", FileNotFoundError, r"nowhere\.parquet: no such oracle file"),
        ("--oracle", "text.parquet", ValueError, r"text\.parquet: not a Parquet file"),
        ("--oracle", "pairs.parquet", ValueError, r"pairs\.parquet: column 'probability' is missing; found request_id, item_id"),
        ("--train-data", "nowhere", ValueError, r"nowhere/train: no samples of this split"),
    ],
)
def test_wrong_inputs_are_found_before_anything_is_scored(data, tmp_path, flag, name, error, message):
    """The run has no checkpoint, so that scoring would end in another error."""
    (tmp_path / "config.yaml").write_text(dump_config(RunConfig(name="small")), encoding="utf-8")
    (tmp_path / "text.parquet").write_text("request_id,item_id,probability\n", encoding="utf-8")
    build.write(tmp_path / "pairs.parquet", {"request_id": [1], "item_id": [1]})
    with pytest.raises(error, match=message):
        main(["--run", str(tmp_path), "--data", str(data), flag, str(tmp_path / name)])


def test_predictions_that_are_not_finite_are_refused(data):
    rows = list(build.scored())
    rows[3]["click_probability"][0] = np.nan
    with pytest.raises(ValueError, match=r"not finite in 1 rows, first at request_id 103, item_id 1030"):
        build.measure(data, rows)


def test_a_missing_split_names_those_that_are_there(data):
    with pytest.raises(ValueError, match=r"no samples of this split; .* has judgments, test, train"):
        sample_files(data / "candidates")


def test_the_table_prints_every_part_and_marks_simulated_data(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    found = {"run": "small", **build.measure(data, oracle=tmp_path / "oracle.parquet")}
    text = format_metrics(found)
    assert text.startswith("small on test: 200 rows, 40 requests, simulated data\n")
    for part in ("gauc_request", "spearman", "share_of_the_way", "user 1-19"):
        assert part in text
    assert "trained on" in text and "served over true" in text and "predicted / observed" in text
    write_json(found, tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == found


def test_a_relevance_tower_that_was_not_trained_is_not_measured(data):
    found = {"run": "small", **build.measure(data, relevance=False)}
    assert found["relevance"] == {}
    assert "relevance tower" not in format_metrics(found)
