"""The programs of docs/embedding run as they stand there, on two ranks with sharded tables, and learn."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from ranks import run_ranks
from sample_files import write_samples

from prectr_torchrec.config.files import load_config

PROGRAMS = sorted((Path(__file__).parents[2] / "docs" / "embedding").glob("*.py"))


def test_every_program_learns_on_two_ranks(tmp_path: Path) -> None:
    write_samples(tmp_path, load_config("demo_dnn").data, requests=600)
    printed = run_ranks(2, "embedding.programs_worker:run_programs", data=tmp_path)
    assert {line.split()[0] for line in printed.splitlines() if " learns: " in line} == {path.stem for path in PROGRAMS}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_is_short_and_needs_nothing_private(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and "prectr" in str(node.module)]
    names = {f"{node.module}.{alias.name}" for node in imported for alias in node.names}
    assert not any(part.startswith("_") for name in names for part in name.split("."))
    assert names and (path.stem == "reader" or all(f"{name}.".startswith("prectr_torchrec.modules.") for name in names))
