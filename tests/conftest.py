"""What all tests share."""

import os

# Before torch is imported: several processes share few cores, and OpenMP's busy waiting would have them fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path

import pytest

LONGEST = (
    "distributed/test_hosts",
    "test_pins",
    "checkpoints/test_resharding",
    "test_tour",
    "distributed/test_resume",
    "distributed/test_faults",
    "launchers/test_run",
    "test_end_to_end",
    "distributed/test_managed",
    "serving/test_managed_export",
    "training/test_joint",
    "training/test_labels",
    "evaluation/test_importance",
    "training/test_fuse",
)
"""Files that begin first, so that no process is left alone with one in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Called by pytest: the longest files first, the others as they are."""
    order = {f"{name}.py": place for place, name in enumerate(LONGEST)}
    here = Path(__file__).parent
    items.sort(key=lambda item: order.get(str(item.path.relative_to(here)), len(order)))
