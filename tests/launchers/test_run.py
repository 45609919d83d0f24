"""The components run for real: two ranks under TorchX's local scheduler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_run import small_config, write_small_data
from teachers import classifier, small_pairs

from prectr_torchrec.config.files import dump_config


def torchx(folder: Path, component: str, *arguments: str) -> str:
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    command = [str(programs / "torchx"), "run", "-s", "local_cwd", "-cfg", f"log_dir={folder / 'logs'}", component, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, configuration and a run trained on two ranks."""
    folder = tmp_path_factory.mktemp("torchx")
    (folder / "small.yaml").write_text(dump_config(small_config()), encoding="utf-8")
    write_small_data(folder / "data", small_config())
    torchx(
        folder,
        "prectr.train",
        "-j",
        "1x2",
        "--config",
        "small.yaml",
        "--data",
        "data",
        "--run",
        "run",
        "--",
        "--set=train.seed=3",
    )
    return folder


def test_training_leaves_a_whole_run_directory(trained: Path) -> None:
    run = trained / "run"
    assert {p.name for p in run.iterdir()} >= {
        "config.yaml",
        "plan.json",
        "checkpoints",
        "metrics.jsonl",
        "tensorboard",
        "tokenizer",
    }
    assert "seed: 3" in (run / "config.yaml").read_text(encoding="utf-8")
    ranks = {
        rank
        for module in json.loads((run / "plan.json").read_text(encoding="utf-8")).values()
        for t in module.values()
        for rank in t["ranks"]
    }
    assert ranks == {0, 1}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["validation"].keys() for line in lines if "validation" in line] == [
        {"ne", "auc", "gauc_request", "calibration"}
    ] * 2


def test_two_ranks_score_every_candidate_once_and_as_one_rank_does(trained: Path) -> None:
    run, data = str(trained / "run"), str(trained / "data")
    torchx(
        trained, "prectr.evaluate", "-j", "1x2", "--run", run, "--data", data, "--", "--predictions", str(trained / "two.parquet")
    )
    torchx(
        trained, "prectr.evaluate", "-j", "1x1", "--run", run, "--data", data, "--", "--predictions", str(trained / "one.parquet")
    )
    two, one = (pq.read_table(trained / f"{name}.parquet") for name in ("two", "one"))
    columns = {"request_id", "item_id", "click_probability", "relevance_probabilities", "relevance", "click"}
    assert columns <= set(two.column_names)
    candidates = sum(
        pq.read_table(p, columns=["num_candidates"])["num_candidates"].to_numpy().sum() for p in (trained / "data/test").glob("*")
    )
    assert two.num_rows == one.num_rows == candidates
    assert two["item_id"].equals(one["item_id"])
    difference = two["click_probability"].to_numpy() - one["click_probability"].to_numpy()
    assert abs(difference).max() < 1e-5


def test_two_ranks_grade_all_pairs_of_a_teacher(tmp_path: Path) -> None:
    small_pairs(tmp_path)
    classifier(tmp_path / "teacher")
    said = torchx(tmp_path, "prectr.teach", "-j", "1x2", "--teacher", "teacher", "--pairs", "pairs.parquet", "--out", "out")
    summary = json.loads((tmp_path / "out" / "teach.json").read_text(encoding="utf-8"))
    assert sum(pq.read_metadata(tmp_path / "out" / name).num_rows for name in summary["files"]) == summary["rows"]
    assert f"teach/0 out: {summary['rows']:,} pairs" in said
