"""What stands around scoring: parts, merge, joins, segments, table."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from prectr_torchrec import metrics as m
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.files import dump_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.evaluation.evaluate import evaluate, format_metrics, main, write_json
from prectr_torchrec.evaluation.part_columns import meanings, part_columns
from prectr_torchrec.evaluation.parts import against_strictness, effect_by_strictness, rise
from prectr_torchrec.evaluation.predictions import sample_files
from prectr_torchrec.modules import ReportedPart

BUILDERS = Path(__file__).with_name("builders_evaluate.py")
spec = importlib.util.spec_from_file_location("builders_evaluate", BUILDERS)
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


@pytest.fixture
def data(tmp_path):
    build.write_prepared(tmp_path / "data")
    return tmp_path / "data"


PERSONAL = build.columns(personal=True)
SEGMENTS = {"0": (0,), "1-19": (1, 2), "20-99": (3, 4), "100+": (5, 6)}
"""Users by their past, `build.PAST`."""


def run(data, rows=None, oracle=None, train=None, parts=None, grades="visible", relevance=True):
    return evaluate(
        rows if rows is not None else build.scored(),
        settings=DataConfig(),
        parts=build.columns() if parts is None else parts,
        relevance=relevance,
        split=data / "test",
        train=train or data / "train",
        predictions=data.parent / "predictions.parquet",
        oracle=oracle,
        grades=grades,
    )


def rows_of(data):
    return pq.read_table(data.parent / "predictions.parquet").to_pydict()


def test_two_ranks_leave_the_same_file_and_metrics_as_one(data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(BUILDERS), str(data)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "two")], check=True, timeout=120, env=environment)
    alone = run(data)
    assert pq.read_table(tmp_path / "two/predictions.parquet").equals(pq.read_table(tmp_path / "predictions.parquet"))
    assert json.loads((tmp_path / "two/metrics.json").read_text(encoding="utf-8")) == alone


def test_predictions_keep_the_order_of_the_samples(data):
    run(data)
    samples = [r for f in sample_files(data / "test") for r in pq.read_table(f).to_pylist()]
    expected = [(s["request_id"], item) for s in samples for item in s["candidate_item_id"]]
    found = rows_of(data)
    assert list(zip(found["request_id"], found["item_id"], strict=True)) == expected


def test_predictions_hold_what_was_scored_and_null_where_missing(data):
    run(data)
    found, scored = rows_of(data), next(iter(build.scored()))
    for place, item in enumerate(scored["item_id"]):
        row = {name: values[found["item_id"].index(item)] for name, values in found.items()}
        assert row["click_probability"] == scored["click_probability"][place]
        assert row["relevance_probabilities"] == scored["relevance_probabilities"][place].tolist()
        assert row["click"] == scored["click"][place]
        assert row["relevance"] == (None if np.isnan(scored["relevance"][place]) else scored["relevance"][place])
        assert row["query_id"] == row["request_id"] % 5


def test_the_columns_of_parts_are_those_that_the_ranker_reports(data):
    run(data)
    plain = pq.read_schema(data.parent / "predictions.parquet").names
    effects = ["effect_own", "effect_own_slope", "effect_peers", "effect_peers_slope"]
    assert plain[-5:] == ["levels_in_order", *effects]
    run(data, build.scored(personal=True), parts=PERSONAL)
    assert pq.read_schema(data.parent / "predictions.parquet").names == [
        *plain,
        "weight_own",
        "weight_peers",
        "weight_prior",
        "taste",
    ]
    found, scored = rows_of(data), next(iter(build.scored(personal=True)))
    places = [found["item_id"].index(item) for item in scored["item_id"]]
    for name in (*effects, "weight_own", "weight_prior"):
        assert [found[name][place] for place in places] == scored[name].tolist()
    run(data, parts=build.columns(mixture=False))
    assert pq.read_schema(data.parent / "predictions.parquet").names == [*plain[:-5], "effect_own", "effect_peers"]


def test_nothing_but_the_predictions_is_left_behind(data):
    run(data)
    assert sorted(p.name for p in data.parent.iterdir()) == ["data", "predictions.parquet"]


def test_parts_of_a_killed_run_are_not_taken_for_rows(data):
    stale = data.parent / "predictions.parquet.parts"
    stale.mkdir()
    (stale / "part-00001.parquet").write_bytes(b"half a file")
    assert run(data)["rows"] == build.REQUESTS * build.CANDIDATES


def test_a_lost_row_is_noticed(data):
    rows = list(build.scored())[1:]
    with pytest.raises(AssertionError, match="200 candidates, 195 rows scored"):
        run(data, rows)


def test_metrics_are_those_of_the_arrays(data):
    found, rows = run(data), list(build.scored())
    probability, click, request = (np.concatenate([r[n] for r in rows]) for n in ("click_probability", "click", "request_id"))
    assert found["clicks"]["auc"] == pytest.approx(m.auc(probability, click))
    assert found["clicks"]["gauc_request"] == pytest.approx(m.gauc(probability, click, request))
    assert found["simulated"] is True


def test_each_graded_pair_counts_once_for_the_tower(data):
    assert run(data)["relevance"]["all"]["pairs"] == sum(int((~np.isnan(r["relevance"])).sum()) for r in build.scored())


def test_segments_follow_the_past_that_a_request_has(data):
    rows = {(s["by"], s["segment"]): s["rows"] for s in run(data)["segments"]}
    requests = [int(r["request_id"][0]) for r in build.scored()]
    users = {name: sum(request % 7 in of for request in requests) for name, of in SEGMENTS.items()}
    assert {name: rows["user", name] // build.CANDIDATES for name in SEGMENTS} == users
    assert rows["query", "0"] == build.CANDIDATES * sum(request % 5 == 0 for request in requests)
    assert rows["item", "0"] == 3 * len(requests) and rows["item", "some"] == 2 * len(requests)


def test_a_user_without_training_impressions_but_with_a_past_is_not_cold(data):
    """All users of the test split are new to the training samples; those with events are in the segment of these."""
    cold = next(s for s in run(data, train=data / "nowhere")["segments"] if (s["by"], s["segment"]) == ("user", "0"))
    assert cold["rows"] == build.CANDIDATES * sum(int(r["request_id"][0]) % 7 == 0 for r in build.scored())


def test_graded_pairs_that_were_trained_on_are_not_called_new(data):
    found = run(data)["relevance"]
    assert {part: measures["pairs"] for part, measures in found.items()} == {
        "all": 80,
        "trained on": 3,
        "known query": 29,
        "new query": 48,
    }


def test_a_query_of_the_judgments_alone_is_not_new(data):
    shutil.rmtree(data / "judgments")
    assert run(data)["relevance"]["new query"]["pairs"] == 48 + 16


def test_without_a_training_split_nothing_is_said_of_what_was_trained_on(data):
    found = run(data, train=data / "nowhere")
    assert list(found["relevance"]) == ["all"]
    assert "not known" in format_metrics({"run": "small", **found}) and "--train-data" in format_metrics(
        {"run": "small", **found}
    )


def test_positions_and_the_past_of_the_samples_are_in_the_predictions(data):
    run(data)
    found = rows_of(data)
    assert found["position"] == [item % 10 + 1 for item in found["item_id"]]
    assert found["user_events"] == [build.PAST[request % 7] for request in found["request_id"]]
    assert found["query_events"] == [request % 5 for request in found["request_id"]]
    assert found["item_shown"] == [item % 2 for item in found["item_id"]]


def test_calibration_is_measured_at_each_logged_position(data):
    found = run(data)["calibration_by_position"]
    rows = list(build.scored())
    assert [line["position"] for line in found] == ["1", "2", "3", "4", "5"]
    for place, line in enumerate(found):
        click = np.array([r["click"][place] for r in rows])
        predicted = np.array([1 / (1 + np.exp(-r["logged_logit"][place])) for r in rows])
        assert (line["rows"], line["clicks"]) == (build.REQUESTS, click.sum())
        assert line["calibration"] == pytest.approx(predicted.sum() / click.sum(), rel=1e-5)


def test_probabilities_at_the_reference_position_are_not_held_against_logged_clicks(data):
    found = run(data)
    assert not {"calibration", "normalized_entropy", "log_loss"} & found["clicks"].keys()
    assert {"calibration", "normalized_entropy", "log_loss"} <= found["clicks_at_position"].keys()


def test_the_logged_order_is_measured_beside_the_model(data):
    found = run(data)["logged_order"]
    rows = list(build.scored())
    click, place, request, ours = (
        np.concatenate([r[n] for r in rows]) for n in ("click", "position", "request_id", "click_probability")
    )
    for name, score in {"logged_order": -place.astype(float), "model": ours.astype(float)}.items():
        measured = {measure: values[name] for measure, values in found["logged"].items()}
        expected = m.ranking_metrics(score, click, request, request)
        assert measured == {measure: pytest.approx(expected[measure]) for measure in measured}
    assert found["examination"] == build.EXAMINATION
    assert found["verdict"]["text"] in format_metrics({"run": "small", **run(data)})


def test_grades_that_the_model_could_not_see_are_said_to_be_hidden(data):
    assert run(data)["grades"] == "visible"
    hidden = run(data, grades="hidden")
    assert hidden["grades"] == "hidden" and hidden["relevance"] == run(data)["relevance"]
    assert "grades were hidden" in format_metrics({"run": "small", **hidden})


def test_predictions_at_the_logged_position_are_measured_beside_the_reference(data):
    found = run(data)
    assert found["clicks_at_position"]["auc"] == 1.0
    assert found["clicks"]["auc"] < 1.0


def test_candidates_without_clicks_have_no_click_metrics(data):
    found = run(data, build.scored(labels=False))
    assert found["clicks"]["auc"] is None
    assert found["reliability"] == []
    assert found["relevance"]["all"]["spearman"] is not None


def test_without_any_grade_clicks_are_measured_alone(data):
    rows = [part | {"relevance": np.full(len(part["relevance"]), np.nan, np.float32)} for part in build.scored()]
    measured = run(data, rows=rows)
    assert measured["clicks"] == run(data)["clicks"]
    assert all(value is None for name, value in measured["relevance"]["all"].items() if name not in ("pairs", "queries"))


def test_expected_auc_is_that_of_the_joined_rows(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    found = run(data, oracle=tmp_path / "oracle.parquet")["oracle"]
    oracle = pq.read_table(tmp_path / "oracle.parquet").to_pydict()
    probability = dict(zip(oracle["item_id"], oracle["probability"], strict=True))
    shown = {item for item, exposed in zip(oracle["item_id"], oracle["exposed"], strict=True) if exposed}
    rows = [(s, item) for r in build.scored() for s, item in zip(r["click_probability"], r["item_id"], strict=True)]
    for part, chosen in {"all": rows, "shown": [r for r in rows if r[1] in shown]}.items():
        score, truth = np.array([s for s, _ in chosen]), np.array([probability[i] for _, i in chosen])
        assert found["expected_auc"][part]["model"] == pytest.approx(m.auc(score, truth))
        assert found["expected_auc"][part]["oracle"] == pytest.approx(m.auc(truth, truth))
        assert found["expected_auc"][part]["rows"] == len(chosen)


def test_effects_of_the_past_are_measured_for_strict_and_indifferent_users(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    found = run(data, build.scored(personal=True), oracle=tmp_path / "oracle.parquet", parts=PERSONAL)["personal"]
    # users 0 to 6 are as strict as their number; grade 1 is level 1, 2 level 2, 3 level 4; the own effect is user times grade
    strict, indifferent = found["effect"]["strict"], found["effect"]["indifferent"]
    assert (strict["users"], indifferent["users"]) == (3, 3)
    assert 4 < strict["by_level"]["own"][0] < 6 and indifferent["by_level"]["own"][0] < 2
    assert strict["by_level"]["peers"] == indifferent["by_level"]["peers"] == [1.0, 2.0, None, 3.0]
    rows = [r for r in build.scored(personal=True) if r["user_id"][0] >= 4]
    effect, grade = (np.concatenate(x) for x in ([r["effect_own"] for r in rows], [1 + r["item_id"] % 3 for r in rows]))
    expected = [effect[grade == g].mean() if g else None for g in (1, 2, None, 3)]
    assert strict["by_level"]["own"] == [None if e is None else pytest.approx(e) for e in expected]


def test_the_share_of_rows_whose_levels_are_in_order_is_measured(data):
    found = run(data, build.scored(personal=True), parts=PERSONAL)
    rows = np.concatenate([r["levels_in_order"] for r in build.scored(personal=True)])
    assert found["levels_in_order"] == pytest.approx(rows.mean()) and 0 < rows.mean() < 1
    assert f"{rows.mean():.2%} of rows" in format_metrics({"run": "small", **found})
    assert run(data, parts=build.columns(mixture=False))["levels_in_order"] is None


def test_the_slope_of_the_own_effect_is_compared_with_the_users_strictness(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    found = run(data, build.scored(personal=True), oracle=tmp_path / "oracle.parquet", parts=PERSONAL)["personal"]["slope"]
    assert found["all"] == {"users": 7, "correlation": pytest.approx(1.0)}  # strictness u, mean slope u^2 and a half
    assert against_strictness(np.array([5.0, 1.0, 2.0]), np.array([1, 1, 2]), np.array([1.0, 1.0, 9.0])) == {
        "users": 2,
        "correlation": pytest.approx(-1.0),
    }
    assert against_strictness(np.ones(3), np.arange(3), np.arange(3.0)) == {}
    assert against_strictness(np.ones(3), np.arange(3), np.full(3, np.nan)) == {}


def test_the_rise_of_the_own_effect_with_the_candidates_grade_is_compared_with_the_users_strictness(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    found = run(data, build.scored(personal=True), oracle=tmp_path / "oracle.parquet", parts=PERSONAL)["personal"]["rise"]
    assert found["all"] == {"users": 7, "correlation": pytest.approx(1.0)}  # the effect of user u is u times the grade
    user, grade = np.array([1, 1, 1, 2, 2, 3, 3]), np.array([1, 2, 3, 1, np.nan, 2, 3])
    found = rise(np.array([1.0, 4.0, 7.0, 9.0, 5.0, 1.0, 0.0]), grade, user)
    np.testing.assert_allclose(found, [3, 3, 3, np.nan, np.nan, -1, -1])
    assert against_strictness(found, user, np.arange(7.0)) == {"users": 2, "correlation": pytest.approx(-1.0)}


def test_the_weights_are_measured_by_user_activity(data):
    found = run(data, build.scored(personal=True), parts=PERSONAL)["personal"]
    assert list(found) == ["weights"] and list(found["weights"]) == ["0", "1-19", "20-99", "100+"]
    rows = [r for r in build.scored(personal=True) if r["user_id"][0] in SEGMENTS["100+"]]
    assert found["weights"]["100+"]["own"] == pytest.approx(np.concatenate([r["weight_own"] for r in rows]).mean())
    assert all(sum(weights.values()) == pytest.approx(1) for weights in found["weights"].values())


def test_without_personal_parts_or_strictness_nothing_personal_is_measured(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    alike = run(data, oracle=tmp_path / "oracle.parquet")["personal"]["effect"]  # every effect is zero
    assert {value for group in alike.values() for means in group["by_level"].values() for value in means} == {0.0, None}
    pq.write_table(pq.read_table(tmp_path / "oracle.parquet").drop(["user_strictness"]), tmp_path / "oracle.parquet")
    rows = build.scored(personal=True)
    assert run(data, rows, oracle=tmp_path / "oracle.parquet", parts=PERSONAL)["personal"].keys() == {"weights"}


def test_parts_are_columns_that_say_what_they_mean_and_means_by_activity(data):
    shown = {"speed": ReportedPart("how fast it sells"), "sides": ReportedPart("two sides", width=2, names=("near", "far"))}
    shown |= {"curve": ReportedPart("a curve", width=3), "secret": ReportedPart("no column", where="explanations")}
    rows = [
        part | {name: part["item_id"] * np.float32(1) for name in ("speed", "near", "far")} | {"curve": np.ones((5, 3), "f4")}
        for part in build.scored()
    ]
    found = run(data, rows, parts=part_columns(shown))
    table = pq.read_table(data.parent / "predictions.parquet")
    assert meanings(table.schema) == {"speed": "how fast it sells", "near": "two sides", "far": "two sides"}
    assert table["curve"].to_pylist() == [[1.0] * 3] * len(table) and "secret" not in table.column_names
    assert found["parts"]["speed"]["all"] == pytest.approx(table["item_id"].to_numpy().mean())
    assert found["parts"]["speed"].keys() == {"meaning", "all", "0", "1-19", "20-99", "100+"}


def test_a_ranker_without_levels_is_measured_without_them(data):
    found = run(data, parts=[])
    assert "relevance_probabilities" not in rows_of(data) and found["relevance"] == {} and found["parts"] == {}
    assert found["clicks"] == run(data)["clicks"]
    assert "relevance tower" not in format_metrics({"run": "small", **found})


def test_users_who_are_all_alike_are_in_no_third():
    alike = ({"own": np.ones(4)}, np.ones(4, np.int8), np.arange(4), np.full(4, 2.0))
    assert effect_by_strictness(*alike, 4) == {}


def test_rows_missing_on_either_side_of_the_oracle_are_counted(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet", drop=7)
    found = run(data, oracle=tmp_path / "oracle.parquet")["oracle"]
    assert (found["rows"], found["unmatched_predictions"], found["unmatched_rows"]) == (193, 7, 0)


def test_shown_rows_alone_do_not_pass_for_all_candidates(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    table = pq.read_table(tmp_path / "oracle.parquet").to_pydict()
    table["exposed"] = [True] * len(table["exposed"])
    more = {"request_id": 1, "item_id": 1, "probability": 0.5, "exposed": False, "relevance": 1.0, "user_strictness": 0.0}
    build.write(tmp_path / "oracle.parquet", {n: [*v, more[n]] for n, v in table.items()})
    found = run(data, oracle=tmp_path / "oracle.parquet")["oracle"]
    assert found["unmatched_rows"] == 1
    assert found["expected_auc"]["shown"]["model"] is not None
    assert found["expected_auc"]["all"]["model"] is None


def test_an_oracle_without_exposure_and_grades_measures_all_candidates(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    pq.write_table(pq.read_table(tmp_path / "oracle.parquet").drop(["exposed", "relevance"]), tmp_path / "oracle.parquet")
    found = run(data, oracle=tmp_path / "oracle.parquet")["oracle"]["expected_auc"]
    assert found["all"]["model"] is not None
    assert found["shown"]["model"] is found["all"]["true_grade"] is found["all"]["share_of_the_way"] is None


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


def test_an_oracle_with_a_row_twice_is_refused(data, tmp_path):
    build.write(tmp_path / "oracle.parquet", {"request_id": [5, 5], "item_id": [1, 1], "probability": [0.1, 0.2]})
    with pytest.raises(ValueError, match="request_id 5, item_id 1 stands there more than once"):
        run(data, oracle=tmp_path / "oracle.parquet")


def test_predictions_that_are_not_finite_are_refused(data):
    rows = list(build.scored())
    rows[3]["click_probability"][0] = np.nan
    with pytest.raises(ValueError, match=r"not finite in 1 rows, first at request_id 103, item_id 1030"):
        run(data, rows)


def test_a_missing_split_names_those_that_are_there(data):
    with pytest.raises(ValueError, match=r"no samples of this split; .* has judgments, test, train"):
        sample_files(data / "candidates")


def test_the_table_prints_every_part_and_marks_simulated_data(data, tmp_path):
    build.write_oracle(tmp_path / "oracle.parquet")
    found = {"run": "small", **run(data, oracle=tmp_path / "oracle.parquet")}
    text = format_metrics(found)
    assert text.startswith("small on test: 200 rows, 40 requests, simulated data\n")
    for part in ("gauc_request", "spearman", "share_of_the_way", "user 1-19"):
        assert part in text
    assert "trained on" in text and "served over true" in text and "predicted / observed" in text
    write_json(found, tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == found


def test_a_relevance_tower_that_was_not_trained_is_not_measured(data):
    found = {"run": "small", **run(data, relevance=False)}
    assert found["relevance"] == {}
    assert "relevance tower" not in format_metrics(found)
