"""What the model reports of each candidate besides its score."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_run import small_config, small_numbers, write_small_data
from torch import Tensor

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.runs.layout import checkpoint_index
from prectr_torchrec.training.task import build_task
from prectr_torchrec.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("scoring"), small_config(), requests=40)


def parts_of(config: RunConfig, data: Path) -> dict[str, Tensor]:
    """What is reported of each candidate where it is asked for."""
    torch.manual_seed(0)
    task = build_task(config, data / TOKENIZER, numbers=small_numbers(config)).eval()
    task.model.reports_parts = True
    _, report = task(next(SearchReader(config, data, "train", data / TOKENIZER).epoch(0)))
    assert not any(value.requires_grad for said in report for value in said.values())
    assert task.model.reported.keys() == report.parts.keys()
    return report.parts


def test_every_part_is_reported_for_each_candidate(data: Path) -> None:
    report = parts_of(small_config(), data)
    shapes = {name: tuple(report[name].shape) for name in ("preference_weights", "taste")}
    assert shapes == {"preference_weights": (64, 3), "taste": (64,)}
    assert set(report["levels_in_order"].tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(report["preference_weights"].sum(1), torch.ones(64))


def test_parts_that_are_switched_off_are_not_reported(data: Path) -> None:
    report = parts_of(small_config(model={"parts": {"personal": None, "taste": None}, "mixture": False}), data)
    assert not {"levels_in_order", "preference_weights", "taste"} & report.keys()
    weighed = parts_of(small_config(model={"parts": {"personal": {"own": False, "incentive": "none"}, "taste": None}}), data)
    assert "preference_weights" in weighed and "taste" not in weighed


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stage = {"split": "train", "epochs": 1, "lr": 0.003, "warmup_steps": 2}
    run = tmp_path_factory.mktemp("runs") / "run"
    with process_group("cpu") as process:
        Trainer(small_config(train={"stages": [stage]}), data, run, process).train()
    return run


def with_candidates(data: Path, to: Path, split: str, column: str, value: float | None) -> Path:
    """The samples with one value in a column of all candidates of a split."""
    shutil.copytree(data, to)
    for path in (to / split).glob("*.parquet"):
        table, requests = pq.read_table(path), pq.ParquetFile(path).metadata.row_group(0).num_rows
        field = table.schema.field(column)
        values = pa.array([[value] * len(items) for items in table["candidate_item_id"].to_pylist()], field.type)
        pq.write_table(table.set_column(table.schema.get_field_index(column), field, values), path, row_group_size=requests)
    return to


def test_hidden_grades_score_as_samples_without_them_and_are_measured_still(run: Path, data: Path, tmp_path: Path) -> None:
    evaluate(["--run", str(run), "--data", str(data)])
    evaluate(["--run", str(run), "--data", str(data), "--hide-grades"])
    ungraded = ["--predictions", str(tmp_path / "ungraded.parquet"), "--metrics", str(tmp_path / "ungraded.json")]
    evaluate(
        [
            "--run",
            str(run),
            "--data",
            str(with_candidates(data, tmp_path / "data", "test", "candidate_relevance", None)),
            *ungraded,
        ]
    )
    files = (run / "predictions-test.parquet", run / "predictions-test-grades-hidden.parquet", tmp_path / "ungraded.parquet")
    visible, hidden, expected = map(pq.read_table, files)
    for column in ("click_probability", "click_probability_at_position"):
        np.testing.assert_allclose(hidden[column].to_numpy(), expected[column].to_numpy(), rtol=1e-6)
        assert (hidden[column].to_numpy() != visible[column].to_numpy()).mean() > 0.5
    assert hidden["relevance"].equals(visible["relevance"])
    assert expected["relevance"].null_count == len(expected) > visible["relevance"].null_count
    measured = {
        name: json.loads((run / f"metrics-test{name}.json").read_text(encoding="utf-8")) for name in ("", "-grades-hidden")
    }
    assert [found["grades"] for found in measured.values()] == ["visible", "hidden"]
    assert measured["-grades-hidden"]["relevance"] == measured[""]["relevance"]


def test_validation_and_evaluate_measure_one_checkpoint_alike(run: Path, data: Path, tmp_path: Path) -> None:
    evaluate(["--run", str(run), "--data", str(data), "--split", "validation", "--metrics", str(tmp_path / "metrics.json")])
    measured = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (logged,) = [line["validation"] for line in lines if "validation" in line]
    at_position = measured["clicks_at_position"]
    assert logged == {
        "ne": pytest.approx(at_position["normalized_entropy"], abs=1e-6),
        "calibration": pytest.approx(at_position["calibration"], abs=1e-6),
        **{name: pytest.approx(measured["clicks"][name], abs=1e-6) for name in ("auc", "gauc_request")},
    }


def test_a_validation_part_of_one_class_is_null_and_chooses_no_best(data: Path, tmp_path: Path) -> None:
    unclicked = with_candidates(data, tmp_path / "data", "validation", "candidate_click", 0)
    stage = {"split": "train", "epochs": 1, "lr": 0.003, "warmup_steps": 2}
    with process_group("cpu") as process:
        Trainer(small_config(train={"stages": [stage]}), unclicked, tmp_path / "run", process).train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (logged,) = [line["validation"] for line in lines if "validation" in line]
    assert logged == dict.fromkeys(("ne", "auc", "gauc_request", "calibration"))
    assert "best" not in checkpoint_index(tmp_path / "run")


def test_parts_are_reported_where_asked_for_and_never_in_training(data: Path) -> None:
    effects = {"effect_own", "effect_own_slope", "effect_peers", "effect_peers_slope"}
    task = build_task(small_config(), data / TOKENIZER, numbers=small_numbers(small_config()))
    batch = next(SearchReader(small_config(), data, "train", data / TOKENIZER).epoch(0))
    assert task.eval()(batch)[1].parts.keys() == {"relevance_probabilities"}
    task.model.reports_parts = True
    parts = task.eval()(batch)[1].parts
    assert {name: tuple(parts[name].shape) for name in effects} == dict.fromkeys(effects, (64,))
    assert not task.train()(batch)[1].parts
    without = small_config(model={"mixture": False})
    single = build_task(without, data / TOKENIZER, numbers=small_numbers(without)).eval()
    single.model.reports_parts = True
    assert effects & single(batch)[1].parts.keys() == {"effect_own", "effect_peers"}
