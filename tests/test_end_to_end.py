"""The main job by its commands: simulate, prepare, train, evaluate, report."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pins import differences
from small_job import SETTINGS, prectr, quality, run_small_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    run_small_job(folder)
    prectr("report", folder / "run", "--out", folder / "report.html")
    return folder


def test_every_shown_test_candidate_has_a_prediction(job: Path) -> None:
    predictions = pq.read_table(job / "run" / "predictions-test.parquet")
    raw = pq.read_table(job / "log" / "raw" / "impressions.parquet")
    test_from = json.loads((job / "log" / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
    expected = raw.filter(raw["timestamp"].to_numpy() >= test_from).select(["request_id", "item_id"])
    keys = [("request_id", "ascending"), ("item_id", "ascending")]
    assert predictions.select(["request_id", "item_id"]).sort_by(keys).equals(expected.sort_by(keys))
    probability = predictions["click_probability"].to_numpy()
    assert ((probability > 0) & (probability < 1)).all()
    assert all(abs(sum(p) - 1) < 1e-4 and len(p) == 4 for p in predictions["relevance_probabilities"].to_pylist())


def test_whole_candidate_sets_are_scored_without_labels(job: Path) -> None:
    predictions = pq.read_table(job / "run" / "predictions-candidates.parquet")
    assert predictions.num_rows == pq.read_table(job / "log" / "eval" / "oracle.parquet").num_rows
    assert predictions["click"].null_count == predictions.num_rows


def test_the_measures_lie_between_chance_and_the_oracle(job: Path) -> None:
    measured = json.loads((job / "run" / "metrics-candidates.json").read_text(encoding="utf-8"))
    expected = measured["oracle"]["expected_auc"]["all"]
    assert 0.5 < expected["model"] < expected["oracle"] < 1
    assert measured["simulated"]


def test_the_model_is_worth_what_is_pinned(job: Path) -> None:
    assert differences("quality", quality(job)) == []


def test_the_report_stands_alone_and_says_that_the_data_are_simulated(job: Path) -> None:
    page = (job / "report.html").read_text(encoding="utf-8")
    assert "simulated" in page.lower()
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page and "<script" not in page


def test_a_finished_run_is_left_as_it_is(job: Path) -> None:
    before = (job / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    prectr("train", "--config", "demo", "--data", job / "samples", "--run", job / "run", "--nproc", "2", *SETTINGS)
    assert (job / "run" / "metrics.jsonl").read_text(encoding="utf-8") == before


def test_a_users_mistake_ends_in_one_line(job: Path) -> None:
    output = prectr("train", "--config", "dem", "--data", job / "samples", "--run", job / "other", code=2)
    assert output.strip().splitlines()[-1] == "error: no configuration 'dem' (did you mean 'demo'?)"
    output = prectr("evaluate", "--run", job / "nothing", "--data", job / "samples", code=2)
    assert "nothing" in output.strip().splitlines()[-1]
