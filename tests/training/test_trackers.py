"""Runs shown by MLflow, in a real store of files, and by Weights & Biases, offline."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from jobs import last_step, start_ranks
from pair_files import write_pairs
from ranks import kill_when
from small_run import small_config, write_small_data
from small_student import run as distill
from small_student import small

from prectr_torchrec.cli.preflight import check_training
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.runs.metrics_log import MetricsLog
from prectr_torchrec.runs.trackers import TRACKERS, open_trackers
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.training.trainer import Trainer

tracking = pytest.importorskip("mlflow.tracking", reason="mlflow-skinny is not installed")
pytest.importorskip("wandb", reason="wandb is not installed")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of the clients: everything stays in the test's folder."""
    variables = {
        "MLFLOW_TRACKING_URI": f"file://{tmp_path / 'mlruns'}",
        "MLFLOW_ALLOW_FILE_STORE": "true",  # without a database; a server has one
        "WANDB_MODE": "offline",
        "WANDB_CONFIG_DIR": str(tmp_path / "wandb"),
        "WANDB_CACHE_DIR": str(tmp_path / "wandb"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def config(*trackers: str, **train: Any) -> RunConfig:
    settings = {"log_every": 2, "checkpoint_every": 3, "stages": [{"split": "train", "epochs": 1}], **train}
    return small_config(train=settings).model_copy(update={"trackers": list(trackers)})


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def mlflow_runs() -> list[Any]:
    client = tracking.MlflowClient()
    experiment = client.get_experiment_by_name("prectr")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def history(run: Any, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in tracking.MlflowClient().get_metric_history(run.info.run_id, name)]


def test_a_killed_and_resumed_run_of_two_ranks_is_one_run_of_each_tracker(tmp_path: Path, store: dict[str, str]) -> None:
    settings, data, run = config("tensorboard", "mlflow", "wandb"), tmp_path / "data", tmp_path / "run"
    write_small_data(data, settings)
    kill_when(lambda: last_step(run) >= 4, start_ranks(settings, data, run, **store))
    again = start_ranks(settings, data, run, **store)
    assert again.wait() == 0, again.printed[-6000:]
    (shown,) = mlflow_runs()
    losses = {record["step"]: record["loss"] for record in records(run) if "loss" in record}
    seen = history(shown, "loss")
    assert dict(seen) == pytest.approx(losses)
    assert len(seen) <= len(losses) + 1  # each once but for that of the kill, though steps after a checkpoint were trained twice
    validation = next(record for record in records(run) if "validation" in record)
    assert dict(history(shown, "validation/auc")) == pytest.approx({validation["step"]: validation["validation"]["auc"]})
    assert shown.info.status == "FINISHED"
    assert (shown.info.run_name, shown.data.params["batch.requests"]) == ("run", "8")
    ids = json.loads((run / TRACKERS).read_text(encoding="utf-8"))
    assert ids["mlflow"] == shown.info.run_id
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{ids['wandb']}.wandb"] * 2
    assert b"loss" in files[-1].read_bytes()
    assert any((run / "tensorboard").iterdir())


def test_without_tensorboard_there_is_no_folder_of_its(tmp_path: Path) -> None:
    settings = config()
    data = write_small_data(tmp_path / "data", settings, requests=16)
    with process_group("cpu") as process:
        Trainer(settings, data, tmp_path / "run", process).train()
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert not (tmp_path / "run" / TRACKERS).exists()
    assert not mlflow_runs()


def test_a_run_begun_anew_with_other_settings_is_another_run_of_the_tracker(tmp_path: Path) -> None:
    data, run = write_small_data(tmp_path / "data", config(), requests=16), tmp_path / "run"
    with process_group("cpu") as process:
        Trainer(config("mlflow"), data, run, process)
        open_trackers(["mlflow"], run, 0, {})
        Trainer(config("mlflow", seed=2), data, run, process).train()
    assert sorted(shown.info.status for shown in mlflow_runs()) == ["FINISHED", "RUNNING"]


def test_a_failed_run_is_not_shown_as_finished(tmp_path: Path) -> None:
    settings = config("mlflow", max_loss=1e-9)
    data = write_small_data(tmp_path / "data", settings, requests=16)
    with process_group("cpu") as process, pytest.raises(ValueError, match="loss"):
        Trainer(settings, data, tmp_path / "run", process).train()
    assert [shown.info.status for shown in mlflow_runs()] == ["KILLED"]


def test_a_distillation_is_shown_too(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet", queries=20)
    settings = small().model_copy(update={"trackers": ["mlflow"]})
    distill(settings, tmp_path, "student", scores=False)
    (shown,) = mlflow_runs()
    assert (shown.info.run_name, shown.info.status) == ("student", "FINISHED")
    assert history(shown, "cross_entropy")


def test_a_tracker_that_cannot_be_reached_is_named_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    settings = config("mlflow")
    data = write_small_data(tmp_path / "data", settings, requests=16)
    with process_group("cpu") as process, pytest.raises(ConfigError, match=r"^trackers: mlflow: .*127\.0\.0\.1.*$"):
        Trainer(settings, data, tmp_path / "run", process).train()
    assert last_step(tmp_path / "run") == 0


def test_a_run_that_the_tracker_has_lost_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / TRACKERS).write_text('{"mlflow": "0123456789abcdef0123456789abcdef"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"trackers: mlflow: Run .* not found; .*remove {re.escape(str(tmp_path / TRACKERS))}"):
        open_trackers(["mlflow"], tmp_path, 0, {})


def test_one_that_fails_later_is_left_out_and_the_run_stays_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = MetricsLog(tmp_path, 0, open_trackers(["mlflow"], tmp_path, 0, {}))
    (shown,) = mlflow_runs()
    log.write({"step": 1, "tables": {"loss": 1.0}})
    tracking.MlflowClient().delete_run(shown.info.run_id)
    log.write({"step": 2, "tables": {"loss": 1.0}})
    log.write({"step": 3, "tables": {"loss": 1.0}})
    log.close()
    assert capsys.readouterr().err.count("note: MLflow is left out from here on: ") == 1
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_one_that_is_not_installed_is_named_with_its_extra(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(kind)
    data = write_small_data(tmp_path / "data", settings, requests=16)
    check_training(settings, data)
    (tmp_path / kind).mkdir()  # as W&B leaves one beside a run
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, kind, raising=False)
    with pytest.raises(ConfigError, match=rf"^trackers: {kind} is not installed; pip install 'prectr-torchrec\[{kind}\]'$"):
        check_training(settings, data)
