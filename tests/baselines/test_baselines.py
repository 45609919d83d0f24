"""Both baselines on a small simulated log: what they recover, and what they may not see."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from prectr_torchrec.baselines.mixed import MixedConfig
from prectr_torchrec.baselines.mixed_scorer import MixedScorer
from prectr_torchrec.baselines.run import run_baseline
from prectr_torchrec.baselines.samples import Samples
from prectr_torchrec.baselines.trees import TreesConfig, TreesScorer
from prectr_torchrec.config.data import DataConfig, Split
from prectr_torchrec.config.kinds import PRECTRConfig
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.simulate.simulate import simulate
from prectr_torchrec.evaluation.evaluate import evaluate
from prectr_torchrec.evaluation.predictions import Rows
from prectr_torchrec.evaluation.report import write_report
from prectr_torchrec.metrics import spearman
from prectr_torchrec.runs.layout import CHECKPOINTS
from prectr_torchrec.system.errors import ConfigError

KINDS = ("trees", "mixed")
QUICK = {"trees": ["rounds=60", "learning_rate=0.1", "min_data_in_leaf=50"], "mixed": ["epochs=8", "lr=0.03"]}
TEXT = TextConfig(vocab_size=600)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw`, `oracle.parquet`, `samples` and `candidates` of a log of 2,500 requests."""
    folder = tmp_path_factory.mktemp("log")
    meta = simulate(folder, requests=2500, users=80, queries=80, items=600)
    data = data_config(meta["test_from_timestamp"])
    prepare(data, TEXT, folder / "raw", folder / "samples", progress=False)
    prepare(data, TEXT, folder / "raw", folder / "candidates", candidates=folder / "eval" / "oracle.parquet", progress=False)
    return folder


def data_config(test_from: int, **split: Any) -> DataConfig:
    return DataConfig(history_length=30, peer_length=10, requests_per_row_group=500, split=Split(test_from=test_from, **split))


@pytest.fixture(scope="module")
def runs(log: Path) -> dict[str, Path]:
    """A run of each kind, scored on both folders."""
    folders = {kind: log / f"run-{kind}" for kind in KINDS}
    for kind, run in folders.items():
        run_baseline(
            kind,
            log / "samples",
            run,
            score=(log / "samples", log / "candidates"),
            oracle=log / "eval" / "oracle.parquet",
            hide_grades=True,
            overrides=QUICK[kind],
        )
    return folders


@pytest.fixture(scope="module")
def scorers(log: Path) -> dict[str, Any]:
    samples = Samples.open(log / "samples")
    return {
        "mixed": MixedScorer(samples, ["train"], MixedConfig(epochs=8, lr=0.03)),
        "trees": TreesScorer(samples, ["train"], TreesConfig(rounds=60, learning_rate=0.1, min_data_in_leaf=50)),
    }


def scored(scorer: Any, folder: Path, split: str, **options: Any) -> Rows:
    parts = list(scorer.score(Samples.open(folder), split, **options))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def first_candidate_of_first_request(samples: Path, out: Path) -> Path:
    """A prepared folder whose test split is one candidate."""
    (out / "test").mkdir(parents=True)
    manifest = json.loads((samples / "prepared.json").read_text(encoding="utf-8"))
    manifest["splits"]["test"]["requests"] = 1
    (out / "prepared.json").write_text(json.dumps(manifest), encoding="utf-8")
    table = pq.read_table(samples / "test").slice(0, 1)
    (row,) = table.to_pylist()
    row |= {name: value[:1] for name, value in row.items() if name.startswith("candidate_")} | {"num_candidates": 1}
    pq.write_table(pa.Table.from_pylist([row], schema=table.schema), out / "test" / "part-00000.parquet")
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_all_candidates_better_than_the_true_grade(kind: str, runs: dict[str, Path]) -> None:
    measured = json.loads((runs[kind] / "metrics-candidates.json").read_text(encoding="utf-8"))
    expected = measured["oracle"]["expected_auc"]["all"]
    assert expected["model"] > expected["true_grade"] + 0.02
    assert expected["model"] < expected["oracle"]


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_at_the_logged_positions_are_calibrated(kind: str, runs: dict[str, Path]) -> None:
    measured = json.loads((runs[kind] / "metrics-test.json").read_text(encoding="utf-8"))
    assert 0.8 < measured["clicks_at_position"]["calibration"] < 1.25
    assert measured["clicks_at_position"]["normalized_entropy"] < 1


@pytest.mark.parametrize("kind", KINDS)
def test_writes_the_predictions_of_evaluate(kind: str, runs: dict[str, Path], log: Path, tmp_path: Path) -> None:
    """The columns are those of a model without parts, the rows those of the samples in their order."""
    table = pq.read_table(runs[kind] / "predictions-test.parquet")
    columns = ("request_id", "item_id", "user_id", "relevance", "click")
    rows = {name: table[name].to_numpy() for name in columns}
    rows |= {name: np.zeros(len(table), np.float32) for name in ("click_probability", "logged_logit")}
    rows |= {"relevance_probabilities": np.full((len(table), 4), 0.25, np.float32)}
    config = RunConfig(name="model", model=PRECTRConfig(mixture=False))
    path, split = tmp_path / "predictions.parquet", log / "samples" / "test"
    evaluate([rows], settings=config.data, parts=(), split=split, train=log / "samples" / "train", predictions=path)
    assert table.schema.equals(pq.read_schema(path))
    samples = pq.read_table(split)
    assert table["item_id"].to_pylist() == [item for row in samples["candidate_item_id"].to_pylist() for item in row]
    assert table["click"].to_pylist() == [click for row in samples["candidate_click"].to_pylist() for click in row]


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_grades_are_measured_beside_visible_ones(kind: str, runs: dict[str, Path]) -> None:
    visible, hidden = (
        json.loads((runs[kind] / f"metrics-test{name}.json").read_text(encoding="utf-8")) for name in ("", "-grades-hidden")
    )
    assert (visible["grades"], hidden["grades"]) == ("visible", "hidden")
    assert hidden["rows"] == visible["rows"]
    assert hidden["clicks"]["auc"] != visible["clicks"]["auc"]


def test_the_report_shows_them_side_by_side(runs: dict[str, Path], tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", runs)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"<th scope=row>{kind}{hidden}</th>" in page for kind in KINDS for hidden in ("", ", grades hidden"))


def test_slopes_of_users_follow_the_planted_strictness(scorers: dict[str, Any], log: Path) -> None:
    oracle = pq.read_table(log / "eval" / "oracle.parquet", columns=["request_id", "user_strictness"]).to_pydict()
    strictness = dict(zip(oracle["request_id"], oracle["user_strictness"], strict=True))
    test = pq.read_table(log / "samples" / "test", columns=["request_id", "user_id", "user_events"]).to_pylist()
    known = {row["user_id"]: strictness[row["request_id"]] for row in test if row["user_events"] >= 50}
    posterior = scorers["mixed"].posterior(Samples.open(log / "samples"), "test")
    slope = posterior.at(np.array(list(known)), np.full(len(known), 2**62))[:, 1]
    assert len(known) >= 20
    correlation = spearman(slope, np.array(list(known.values())))
    assert correlation is not None and correlation > 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_later_clicks_change_no_earlier_prediction(kind: str, scorers: dict[str, Any], log: Path, tmp_path: Path) -> None:
    """The same log once more, with the clicks of the latest fifth of the requests turned around, features built anew."""
    raw = shutil.copytree(log / "raw", tmp_path / "raw")
    impressions = pq.read_table(raw / "impressions.parquet")
    time = impressions["timestamp"].to_numpy()
    moment = int(
        np.quantile(time[time >= json.loads((log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]], 0.5)
    )
    click = impressions["click"].to_numpy()
    turned = pa.array(np.where(time >= moment, 1 - click, click)).cast(impressions.schema.field("click").type)
    place = impressions.schema.get_field_index("click")
    pq.write_table(impressions.set_column(place, "click", turned), raw / "impressions.parquet")
    samples = Samples.open(log / "samples")
    changed = tmp_path / "changed"
    prepare(samples.data, TEXT, raw, changed, progress=False)
    earlier = pq.read_table(log / "samples" / "test", filters=[("timestamp", "<=", moment)])["request_id"].to_numpy()
    expected, found = (scored(scorers[kind], folder, "test") for folder in (log / "samples", changed))
    rows = np.isin(expected["request_id"], earlier)
    assert 0 < rows.sum() < len(rows)
    np.testing.assert_allclose(found["click_probability"][rows], expected["click_probability"][rows], rtol=1e-6)
    assert (found["click_probability"][~rows] != expected["click_probability"][~rows]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_one_candidate_alone_scores_as_among_others(kind: str, scorers: dict[str, Any], log: Path, tmp_path: Path) -> None:
    alone = first_candidate_of_first_request(log / "samples", tmp_path / "alone")
    one, all_rows = (scored(scorers[kind], folder, "test") for folder in (alone, log / "samples"))
    assert len(one["click_probability"]) == 1
    np.testing.assert_allclose(one["click_probability"], all_rows["click_probability"][:1], rtol=1e-6)
    np.testing.assert_allclose(one["logged_logit"], all_rows["logged_logit"][:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_grades_are_not_looked_at_but_stay_labels(kind: str, scorers: dict[str, Any], log: Path) -> None:
    hidden, visible = (scored(scorers[kind], log / "samples", "test", hide_grades=hide) for hide in (True, False))
    np.testing.assert_array_equal(hidden["relevance"], visible["relevance"])
    graded = ~np.isnan(visible["relevance"])
    changed = hidden["click_probability"] != visible["click_probability"]
    assert changed[graded].mean() > 0.5
    np.testing.assert_array_equal(changed[~graded], False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_without_grades_and_validation_split_is_enough(kind: str, log: Path, tmp_path: Path) -> None:
    raw = shutil.copytree(log / "raw", tmp_path / "raw")
    (raw / "judgments.parquet").unlink()
    test_from = json.loads((log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
    prepare(data_config(test_from, validation_fraction=0.0), TEXT, raw, tmp_path / "samples", progress=False)
    assert not Samples.open(tmp_path / "samples").has("validation")
    (measured,) = run_baseline(kind, tmp_path / "samples", tmp_path / "run", overrides=QUICK[kind])
    assert measured["clicks"]["auc"] > 0.55


@pytest.mark.parametrize("kind", KINDS)
def test_a_refit_learns_from_the_validation_split_too(kind: str, runs: dict[str, Path], log: Path, tmp_path: Path) -> None:
    run_baseline(kind, log / "samples", tmp_path / "run", refit=True, overrides=QUICK[kind])
    about = json.loads((tmp_path / "run" / "baseline.json").read_text(encoding="utf-8"))
    assert about["trained_on"] == ["train", "validation"]
    refit, first = (pq.read_table(run / "predictions-test.parquet") for run in (tmp_path / "run", runs[kind]))
    assert refit["click_probability"].to_pylist() != first["click_probability"].to_pylist()


def test_refuses_a_run_directory_of_a_trained_ranker(log: Path, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINTS).mkdir()
    with pytest.raises(ValueError, match="holds the checkpoints of `prectr train`"):
        run_baseline("mixed", log / "samples", tmp_path)


def test_users_as_of_a_moment_have_not_clicked_what_is_not_yet_known(log: Path, tmp_path: Path) -> None:
    data = data_config(json.loads((log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"])
    data.feedback_delay = 10**8
    prepare(data, TEXT, log / "raw", tmp_path / "late", progress=False)
    config = MixedConfig(epochs=1)
    of = [
        MixedScorer(samples := Samples.open(folder), ["train"], config).posterior(samples, "test")
        for folder in (tmp_path / "late", log / "samples")
    ]
    shown = pq.read_table(log / "raw" / "impressions.parquet")
    user = np.unique(shown.filter(pc.equal(shown["click"], 1))["user_id"].to_numpy())[:20]
    last = pc.max(shown["timestamp"]).as_py()
    known_to_none, known_to_all = (np.full(len(user), last + after) for after in (1, 10**8 + 1))
    late, at_once = of
    assert (late.at(user, known_to_none)[:, 0] < at_once.at(user, known_to_none)[:, 0]).all()
    # alike and not the same: an event is linear around what was known of the user when it was shown
    assert np.corrcoef(late.at(user, known_to_all).ravel(), at_once.at(user, known_to_all).ravel())[0, 1] > 0.95


def test_refuses_two_folders_that_would_write_one_file(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two folders would write predictions-test\.parquet"):
        run_baseline("mixed", log / "samples", tmp_path, score=(log / "samples", log / "samples"))


@pytest.mark.parametrize(("kind", "near"), [("mixed", "rank"), ("trees", "rounds")])
def test_an_unknown_setting_is_named_with_the_nearest_one(kind: Any, near: str, log: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--set: {near}s: unknown key .did you mean '{near}'"):
        run_baseline(kind, log / "samples", tmp_path, overrides=[f"{near}s=3"])


def test_trees_without_lightgbm_name_the_extra_to_install(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("trees", "boosting"):
        monkeypatch.delitem(sys.modules, f"prectr_torchrec.baselines.{name}")
    monkeypatch.setitem(sys.modules, "lightgbm", None)  # as of a package that is not there
    with pytest.raises(ValueError, match=r"lightgbm is not installed; pip install 'prectr-torchrec\[trees\]'"):
        run_baseline("trees", log / "samples", tmp_path / "run")
