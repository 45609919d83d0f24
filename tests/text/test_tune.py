"""Tuning a teacher: it learns, goes on after a kill as if nothing had happened, and says what it cannot use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from teachers import DATA, encoder, small_pairs
from transformers import AutoModelForSequenceClassification

from prectr_torchrec.config.text import PairsConfig
from prectr_torchrec.data.pairs.pairs import PairsFile, write_pairs
from prectr_torchrec.data.tokenizer import load_tokenizer
from prectr_torchrec.metrics import spearman
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text.teacher import load_teacher
from prectr_torchrec.text.tune import TuneConfig, _Labelled, tune_teacher, tuning_config

CPU = torch.device("cpu")
CONFIG = TuneConfig(epochs=2, batch_size=16, lr=1e-2, head_lr=1e-2, negatives=0, checkpoint_every=7, validations=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pairs.parquet`, an `encoder`, and `tuned` from both."""
    folder = tmp_path_factory.mktemp("tune")
    small_pairs(folder)
    tune_teacher(encoder(folder / "encoder"), folder / "pairs.parquet", folder / "tuned", CONFIG, CPU)
    return folder


def test_a_tuned_teacher_orders_the_pairs_of_unseen_queries(folder: Path) -> None:
    pairs = PairsFile.open(folder / "pairs.parquet")
    table = pairs.read(split="test")
    table = table.filter(table["relevance"].is_valid())
    teacher = load_teacher(folder / "tuned", pairs.levels.count)
    probabilities = teacher.grade(table["query"].to_pylist(), table["title"].to_pylist()).probabilities
    agreement = spearman(probabilities @ pairs.level_grades(), table["relevance"].to_numpy())
    assert agreement is not None and agreement > 0.8


def test_drawn_pairs_of_other_categories_are_labelled_as_level_one(folder: Path) -> None:
    pairs, tokenizer = PairsFile.open(folder / "pairs.parquet"), load_tokenizer(folder / "encoder")
    table = pairs.read(split="train")
    graded = table["relevance"].is_valid().to_numpy().sum()
    drawn = (table["source"].to_numpy() == "other_category").sum()
    assert 0 < drawn < graded
    none, some, all_of_them = (
        _Labelled(pairs, "train", tokenizer, CONFIG.model_copy(update={"negatives": share})).targets
        for share in (0.0, drawn / graded / 2, 1.0)
    )
    assert [len(none), len(some), len(all_of_them)] == [graded, graded + round(drawn / 2), graded + drawn]
    assert (all_of_them[graded:] == torch.tensor([1.0, 0, 0, 0])).all()
    torch.testing.assert_close(all_of_them[:graded], none)


def test_the_folder_tells_what_was_done(folder: Path) -> None:
    told = json.loads((folder / "tuned" / "tune.json").read_text(encoding="utf-8"))
    assert told["settings"]["lr"] == CONFIG.lr
    assert 0 < told["best_step"] <= told["steps"]
    assert np.isfinite(told["validation_loss"])
    assert not (folder / "tuned" / "work").exists()


def test_who_may_read_the_folder_may_read_its_weights(folder: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in (folder / "tuned").iterdir()}
    (folder / "new").touch()
    assert modes == {(folder / "new").stat().st_mode & 0o777}


def test_a_finished_tuning_is_left_alone(folder: Path) -> None:
    weights = folder / "tuned" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    tune_teacher(folder / "encoder", folder / "pairs.parquet", folder / "tuned", CONFIG, CPU)
    assert weights.stat().st_mtime_ns == written


def test_another_setting_on_the_same_folder_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"made from other settings.*\n  lr: 0.01 there, 0.1 now"):
        tune_teacher(folder / "encoder", folder / "pairs.parquet", folder / "tuned", CONFIG.model_copy(update={"lr": 0.1}), CPU)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from prectr_torchrec.text import tune
    step, save = tune._Tuner._train_step, tune._Tuner._save
    def killing(self, rows):
        if self.step == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, rows)
    tune._Tuner._train_step = killing
    folder = Path(sys.argv[1])
    config = tune.TuneConfig.model_validate_json(sys.argv[3])
    tune.tune_teacher(folder / "encoder", folder / "pairs.parquet", Path(sys.argv[2]), config, torch.device("cpu"))
"""


@pytest.mark.parametrize("step", [3, 40])
def test_killed_and_run_again_it_ends_with_the_same_weights(folder: Path, tmp_path: Path, step: int) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), folder, tmp_path / "out", CONFIG.model_dump_json(), str(step)]
    killed = subprocess.run(list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "out" / "work" / "checkpoint.pt").exists() == (step > CONFIG.checkpoint_every)
    tune_teacher(folder / "encoder", folder / "pairs.parquet", tmp_path / "out", CONFIG, CPU)
    for name in ("model.safetensors", "tune.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "tuned" / name).read_bytes(), name


def test_it_stops_when_the_validation_no_longer_improves(folder: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"lr": 0.5, "head_lr": 0.5, "patience": 1, "epochs": 4})
    told = tune_teacher(folder / "encoder", folder / "pairs.parquet", tmp_path / "out", config, CPU)
    assert told["best_step"] < told["steps"] < 4 * told["steps_per_epoch"]


def test_the_head_learns_at_its_own_rate(folder: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"lr": 1e-12, "epochs": 1})
    tune_teacher(folder / "encoder", folder / "pairs.parquet", tmp_path / "out", config, CPU)
    before, after = load_file(folder / "encoder" / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name, weights in before.items():
        torch.testing.assert_close(after[f"bert.{name}"], weights, atol=1e-6, rtol=0)
    torch.manual_seed(config.seed)
    fresh = AutoModelForSequenceClassification.from_pretrained(folder / "encoder", num_labels=4)
    assert (after["classifier.weight"] - fresh.classifier.weight).abs().max() > 0.01


def test_a_loss_that_is_no_number_ends_it(folder: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"lr": 1e30, "head_lr": 1e30})
    with pytest.raises(ValueError, match=r"the loss is nan at step \d+; lower lr, and choose another --out"):
        tune_teacher(folder / "encoder", folder / "pairs.parquet", tmp_path / "out", config, CPU)


def test_overrides_reach_the_configuration() -> None:
    assert tuning_config(["lr=1e-4", "epochs=3"]) == TuneConfig(lr=1e-4, epochs=3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning=1", "--set: learning: unknown key .valid: "),
        ("epoch=1", r"--set: epoch: unknown key .did you mean 'epochs'\?"),
        ("epochs", "--set 'epochs': write it as key=value"),
        ("lr=fast", "--set: lr: Input should be a valid number.*; got 'fast'"),
    ],
)
def test_wrong_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tuning_config([override])


def test_pairs_without_grades_are_refused(tmp_path: Path) -> None:
    small_pairs(tmp_path)
    (tmp_path / "raw" / "judgments.parquet").unlink()
    write_pairs(DATA, PairsConfig(), tmp_path / "raw", tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match="no graded pair in the train split"):
        tune_teacher(encoder(tmp_path / "encoder"), tmp_path / "pairs.parquet", tmp_path / "out", CONFIG, CPU)
