"""Samples that several files of tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_files import write_samples
from small_readers import (
    CONFIG,
    REQUESTS,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_samples(folder, CONFIG.data, requests=REQUESTS)
    write_samples(folder, CONFIG.data, requests=20, split="judgments", files=1)
    write_samples(folder, CONFIG.data, requests=20, split="candidates", files=1)
    return folder
