"""Executes docs/tour.ipynb and writes its outputs into it: `python packaging/tour_notebook.py`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOK = DOCS / "tour.ipynb"


def execute(folder: Path) -> Any:
    """The notebook with outputs, run in a folder beside a copy of the tutorial's shop.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    shutil.copytree(DOCS / "start", folder / "start")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    client = NotebookClient(
        nbformat.read(NOTEBOOK, as_version=4),
        timeout=600,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": folder}},
    )
    return client.execute(env={**os.environ, "PATH": path, "TMPDIR": str(folder)})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        nbformat.write(execute(Path(temporary)), NOTEBOOK)
