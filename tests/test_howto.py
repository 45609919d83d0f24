"""The pages of docs/howto: their configurations load, their commands are ones that there are, and what is cheap is run."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from make_shop import write_export
from typer.testing import CliRunner

from prectr_torchrec.cli.main import app
from prectr_torchrec.config.files import load_config
from prectr_torchrec.data.reader.feature_columns import check_features

FOLDER = Path(__file__).parents[1] / "docs" / "howto"
PAGES = sorted(FOLDER.glob("*.md"))
RUN = {
    "own_columns": ["init"],
    "several_labels": ["simulate", "init", "prepare"],
    "billions_of_ids": ["plan"],
    "bad_loss": ["config"],
}
"""Page -> its commands that are cheap; the others need a run, and are those of the tutorial or have tests of their own."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def lines(page: Path) -> list[str]:
    """Of all code, fenced or indented; continued lines as one."""
    text = page.read_text(encoding="utf-8")
    code = "\n".join([*blocks(page, "sh"), *re.findall(r"^    (.*)$", text, re.MULTILINE)])
    return code.replace("\\\n", " ").splitlines()


def commands(page: Path) -> list[list[str]]:
    found = [shlex.split(line.split(" & ")[0], comments=True) for line in lines(page) if line.startswith("prectr ")]
    return [words[1:] for words in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configurations_load(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        config = load_config(tmp_path / "mine.yaml")
        check_features(config.data, config.features)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_their_options_are_there(page: Path) -> None:
    for words in commands(page):
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words)


@pytest.mark.parametrize("page", RUN)
def test_cheap_commands_run(page: str, tmp_path: Path) -> None:
    write_export(tmp_path / "shop", 40)
    with contextlib.chdir(tmp_path):
        for words in commands(FOLDER / f"{page}.md"):
            if words[0] in RUN[page]:
                smaller = ["--requests", "150", "--users", "20", "--queries", "20", "--items", "80"]
                done = CliRunner().invoke(app, [*words, *(smaller if words[0] == "simulate" else [])], catch_exceptions=False)
                assert done.exit_code == 0, done.output


@pytest.mark.parametrize("page", ["slurm", "kubernetes"])
def test_jobs_are_printed(page: str, tmp_path: Path) -> None:
    (job,) = (line for line in lines(FOLDER / f"{page}.md") if line.startswith("torchx run"))
    torchx = [sys.executable, "-c", "from torchx.cli.main import main; main()"]
    done = subprocess.run([*torchx, *shlex.split(job)[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "=== SCHEDULER REQUEST ===" in done.stdout


def test_python_runs() -> None:
    for page in PAGES:
        for code in blocks(page, "python"):
            exec(code, {})
