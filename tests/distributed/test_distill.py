"""Distillation on two ranks: the same result whether it was killed or not."""

import json
import random
from pathlib import Path

import pytest
from forked import Forked, rank_environments
from pair_files import write_pairs, write_teacher_scores
from ranks import kill_when
from small_run import small_config

from prectr_torchrec.config.files import dump_config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distill")
    write_teacher_scores(root / "scores", write_pairs(root / "pairs.parquet"), hidden=6)
    config = small_config(
        text={"vocab_size": 300, "query_tokens": 5, "title_tokens": 8, "interaction": "late"},
        model={"relevance_tower": [16], "dropout": 0.2},
        distill={
            "batch_size": 16,
            "warmup_steps": 5,
            "lr": 0.005,
            "grade_lr": 0.001,
            "teacher_epochs": 4,
            "grade_epochs": 3,
            "hidden_weight": 0.3,
            "checkpoint_every": 3,
            "log_every": 4,
        },
    )
    (root / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return root


def start(root: Path, out: str) -> Forked:
    words = ["distill", "--config", str(root / "config.yaml"), "--out", str(root / out)]
    words += ["--pairs", str(root / "pairs.parquet"), "--teacher-scores", str(root / "scores")]
    return Forked("forked:prectr", [tuple(words)] * 2, rank_environments(2, root), root / f"{out}.log")


def finish(job: Forked) -> None:
    assert job.wait() == 0, job.printed[-6000:]


def test_a_killed_distillation_goes_on_to_the_same_student(root: Path) -> None:
    finish(start(root, "whole"))
    whole = (root / "whole" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    path = root / "killed" / "metrics.jsonl"
    for lines in sorted(random.sample(range(1, len(whole) * 2 // 3), 2)):
        kill_when(
            lambda lines=lines: path.exists() and path.read_text(encoding="utf-8").count("\n") >= lines, start(root, "killed")
        )
        assert not (root / "killed" / "distill.json").exists()
    finish(start(root, "killed"))
    for name in ("model.safetensors", "relevance.safetensors", "tokenizer.json"):
        assert (root / "killed" / name).read_bytes() == (root / "whole" / name).read_bytes(), name
    found, expected = (json.loads((root / out / "distill.json").read_text(encoding="utf-8")) for out in ("killed", "whole"))
    assert found["measures"] == expected["measures"]
    assert found["measures"]["test"]["spearman"] > 0.5
    steps = [json.loads(line)["step"] for line in (root / "killed" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == [json.loads(line)["step"] for line in whole]
