"""`modules/` stand alone, and so do their tests: nothing here imports the rest of the project."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prectr_torchrec import modules

FIELD = {"torch", "torchrec", "transformers"}
TESTS = Path(__file__).parents[1]
ROOT = Path(modules.__file__).parent


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports from elsewhere; its own folder's, imported relatively, are not among them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [alias.name for alias in node.names] if node.module == "prectr_torchrec" else [""]
            yield from (f"{node.module}.{name}".rstrip(".") for name in names)


def foreign(path: Path, allowed: set[str]) -> set[str]:
    return {name for name in imported(path) if name.split(".")[0] not in {*allowed, *sys.stdlib_module_names}}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_import_nothing_of_the_project(path: Path) -> None:
    assert foreign(path, FIELD) == set()


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_tests_of_modules_import_nothing_else_of_the_project(path: Path) -> None:
    read, waiting = set[Path](), [path]
    while waiting:
        read.add(file := waiting.pop())
        helpers = {name: TESTS / f"{name}.py" for name in imported(file)}
        found = {name for name in foreign(file, {*FIELD, "numpy", "pytest"}) if not helpers[name].exists()}
        assert {name for name in found if not f"{name}.".startswith("prectr_torchrec.modules.")} == set(), file.name
        waiting += {helper for helper in helpers.values() if helper.exists()} - read
