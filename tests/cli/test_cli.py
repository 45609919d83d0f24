"""The command line: what users see of it, each command in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import write_small_manifest
from typer.testing import CliRunner

from prectr_torchrec.cli import preflight
from prectr_torchrec.cli.main import app
from prectr_torchrec.config.files import load_config
from prectr_torchrec.distributed import launch
from prectr_torchrec.distributed.sharding import read_plan
from prectr_torchrec.evaluation.evaluate import _parse

PRECTR = str(Path(sys.executable).parent / "prectr")
COMMANDS = (
    "simulate",
    "init",
    "prepare",
    "pairs",
    "teacher-tune",
    "teach",
    "distill",
    "plan",
    "train",
    "evaluate",
    "baseline",
    "explain",
    "effects",
    "export",
    "index",
    "score",
    "serve",
    "report",
    "demo",
    "config",
    "doctor",
)


def prectr(*arguments: str | Path | int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PRECTR, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_help_names_every_command() -> None:
    done = prectr("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    assert prectr(command, "--help").returncode == 0


@pytest.mark.parametrize(("words", "found"), [("prectr prep", "prepare"), ("prectr train --ma", "--max-restarts")])
def test_a_shell_completes_commands_and_options(words: str, found: str) -> None:
    asked = {"_PRECTR_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run([PRECTR], env={**os.environ, **asked}, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [found]


def test_simulate_writes_a_log_with_an_effect_switched_off(tmp_path: Path) -> None:
    done = prectr("simulate", "--out", tmp_path, "--requests", 50, "--seed", 2, "--strictness", 0)
    assert done.returncode == 0, done.stderr
    assert '"strictness": 0.0' in (tmp_path / "meta.json").read_text(encoding="utf-8")
    assert "50 simulated requests" in done.stdout


def test_config_prints_the_resolved_run_with_its_documentation(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {seed: 7}\n", encoding="utf-8")
    done = prectr("config", "--config", file, "--set", "train.log_every=3")
    assert done.returncode == 0, done.stderr
    for line in ("name: mine", "  seed: 7", "  log_every: 3", "# Steps between two lines of metrics.jsonl."):
        assert line in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config", "--config", "nowhere"], "error: no configuration 'nowhere'"),
        (["simulate", "--out", "unused", "--requests", "0"], "error: requests is 0; it must be at least 1"),
        (["report", "nowhere"], "error: "),
        (["explain", "--run", "nowhere", "--data", "d", "--request", "1"], "error: nowhere: no run directory"),
        (["pairs", "--config", "prectr_v2", "--raw", "nowhere", "--out", "unused"], "error: impressions: there is no file"),
        (["teacher-tune", "--teacher", "t", "--pairs", "nowhere", "--out", "o"], "error: nowhere: there is no such file"),
        (["teach", "--teacher", "t", "--pairs", "nowhere", "--out", "o"], "error: nowhere: there is no such file"),
        (["train", "--config", "nowhere", "--data", "d", "--run", "r", "--nproc", "2"], "error: no configuration 'nowhere'"),
        (["distill", "--config", "student", "--pairs", "nowhere", "--out", "unused"], "error: nowhere: there is no such file"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_two(arguments: list[str], message: str) -> None:
    done = prectr(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_a_mistake_that_ranks_meet_comes_last_and_ends_with_two(tmp_path: Path) -> None:
    write_small_manifest(tmp_path, load_config("prectr_v1"))
    plan = tmp_path / "none.json"
    plan.write_text("{}", encoding="utf-8")
    done = prectr("train", "--config", "prectr_v1", "--data", tmp_path, "--run", tmp_path / "run", "--nproc", 2, "--plan", plan)
    assert done.returncode == 2
    last = [line for line in done.stderr.splitlines() if line.startswith("error: ")][-1]
    assert re.match(rf"error: rank [01]: \w+: {plan}: ", last), last
    assert done.stderr.rstrip().endswith(last)


def test_a_plan_that_does_not_fit_says_what_would_and_exits_with_one() -> None:
    done = prectr("plan", "--config", "billion_ids", "--gpus", 8, "--hbm", "80GB", "--ddr", "2TB")
    assert done.returncode == 1 and "does not fit" in done.stdout and "--set tables.item.kernel=" in done.stdout


def test_a_saved_plan_reaches_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launched: list[list[str]] = []
    monkeypatch.setattr(launch, "launch", lambda program, args, nproc, **how: launched.append(args))
    saved = str(tmp_path / "plans" / "two.json")
    assert CliRunner().invoke(app, ["plan", "--config", "demo", "--gpus", "2", "--save", saved]).exit_code == 0
    assert read_plan(Path(saved)).keys() == {"embeddings.sequences.16", "embeddings.bags.candidate"}
    write_small_manifest(tmp_path, load_config("demo"))
    options = ["--config", "demo", "--data", str(tmp_path), "--run", "r", "--plan", saved]
    assert CliRunner().invoke(app, ["train", *options]).exit_code == 0
    assert launched[0][-2:] == ["--plan", saved]


def test_every_option_of_evaluate_reaches_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[list[str]] = []
    monkeypatch.setattr(launch, "launch", lambda program, args, nproc: launched.append(args))
    monkeypatch.setattr(preflight, "check_run", lambda *arguments: None)
    given = {"run": "r", "data": "d", "split": "s", "checkpoint": "last", "predictions": "p", "metrics": "m", "oracle": "o"}
    given |= {"train_data": "t", "against": "a"}
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert CliRunner().invoke(app, ["evaluate", *options, "--hide-grades"]).exit_code == 0
    assert {name: str(value) for name, value in vars(_parse(launched[0])).items()} == {**given, "hide_grades": "True"}
