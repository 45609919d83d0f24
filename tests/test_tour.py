"""The notebook of the tour, executed from top to bottom; what is committed of it has the outputs of such a run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "packaging" / "tour_notebook.py"))
MOST_BYTES = 150_000


@pytest.fixture(scope="module")
def committed() -> Any:
    return nbformat.read(SCRIPT["NOTEBOOK"], as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return SCRIPT["execute"](tmp_path_factory.mktemp("tour"))


def outputs(notebook: Any) -> list[list[str]]:
    """Of each cell with code: the types of what it shows, or that it prints."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sorted({kind for output in cell.outputs for kind in output.get("data", {output.output_type: 0})}) for cell in cells]


def printed(notebook: Any) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))


def test_it_shows_what_the_committed_one_shows(executed: Any, committed: Any) -> None:
    assert outputs(executed) == outputs(committed)
    assert sum("image/png" in kinds for kinds in outputs(executed)) == 4
    assert "Warning" not in printed(executed)


def test_the_best_products_have_the_words_of_the_query(executed: Any) -> None:
    best = re.findall(r"^(.+): (.+) \d+, clicked with", printed(executed), re.MULTILINE)
    assert [(query, title.lower()) for query, title in best] == [(query, query) for query in ("oak shelf", "garden chair")]


def test_the_committed_one_is_small_and_names_no_folder_of_a_machine(committed: Any) -> None:
    assert len(nbformat.writes(committed)) < MOST_BYTES
    assert not re.search(r"/tmp/|/home/|site-packages", printed(committed))
