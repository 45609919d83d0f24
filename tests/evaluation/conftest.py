from __future__ import annotations

from pathlib import Path

import pytest
from small_evaluation import write_prepared


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_prepared(tmp_path / "data")
    return tmp_path / "data"
