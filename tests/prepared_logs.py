"""Preparing small logs, for the tests of what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raw_logs import (
    Raw,
    read_split,
    write_log,
)

from prectr_torchrec.config.data import DataConfig, Split
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.prepare.prepare import prepare

TEXT = TextConfig(vocab_size=300)


SMALL: dict[str, Any] = {
    "history_length": 4,
    "peer_length": 5,
    "peer_minimum": 3,
    "requests_per_shard": 50,
    "requests_per_row_group": 20,
    "split": Split(validation_from=20, test_from=30),
    "examination": [1.0, 0.75, 0.375],
}


LABELLED = ("train", "validation", "test")


def run(raw: Raw, folder: Path, data: DataConfig, *, suffix: str = "parquet", **options: Any) -> dict[str, Any]:
    return prepare(data, TEXT, write_log(raw, folder / "raw", suffix=suffix), folder / "out", progress=False, **options)


def labelled_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for split in LABELLED for row in read_split(folder / "out", split)]
