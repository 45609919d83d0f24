"""Readers of small generated samples, and what their batches are to hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from per_row import RowBatch
from small_run import COLUMNS

from prectr_torchrec.config.run import RunConfig, validate_config
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER

REQUESTS = 150
TABLES = ("user", "city", "item", "category", "brand", "token", "tag", "badge", "engine", "device", "interest")


def make_config(parts: dict[str, Any] | None = None, statistics: list[str] | None = None, **batch: Any) -> RunConfig:
    table = {"rows": 97, "dim": 4}
    return validate_config(
        {
            "name": "reader",
            "data": {
                "history_length": 6,
                "peer_length": 4,
                "requests_per_row_group": 13,
                "user_attributes": ["city"],
                "columns": {**COLUMNS, "items": {**COLUMNS["items"], "details": {"text": {"tokens": 5}}}},
            },
            "text": {"query_tokens": 4, "title_tokens": 6},
            "batch": {"requests": 8, "candidates": 40, "shuffle_row_groups": 3, **batch},
            "tables": {name: table for name in TABLES},
            "features": {
                "candidate_brand_id": {"table": "brand"},
                "user_id": {"table": "user"},
                "user_city": {"table": "city"},
                "history_item_id": {"table": "item", "sequence": "history"},
                "peer_item_id": {"table": "item", "sequence": "peer"},
                "candidate_item_id": {"table": "item"},
                "candidate_category_id": {"table": "category", "sequence": "candidate"},
                "candidate_title_tokens": {"table": "token"},
                "candidate_tags": {"table": "tag", "pooling": "mean"},
                "candidate_badges": {"table": "badge", "pooling": "mean"},
                "candidate_engine": {"table": "engine"},
                "device": {"table": "device"},
                "user_interests": {"table": "interest"},
                "interests_again": {"table": "interest", "column": "user_interests"},
            },
            "model": {"parts": {"statistics": {"whose": statistics or ["user"]}, **(parts or {})}},
        },
        "test",
    )


CONFIG = make_config()


ALL: dict[str, Any] = {"personal": {}, "taste": {"dim": 8}, "numbers": {}, "vectors": {}, "further_match": {}}


PREFERENCE = make_config(ALL)


def make_reader(folder: Path, config: RunConfig = CONFIG, split: str = "train", **arguments: Any) -> SearchReader:
    return SearchReader(config, folder, split, folder / TOKENIZER, **arguments)


def requests_of(batch: SearchBatch) -> list[int]:
    return batch["request_id"][batch.request_weight > 0].tolist()


def sample_rows(folder: Path, split: str = "train") -> dict[int, dict[str, Any]]:
    paths = sorted((folder / split).glob("*.parquet"))
    return {row["request_id"]: row for path in paths for row in pq.read_table(path).to_pylist()}


def assert_equal(batch: SearchBatch, expected: SearchBatch) -> None:
    """That two batches of readers are the same."""
    assert batch.layout == expected.layout
    views = {name: expected[name] for name in expected.layout.places}
    assert_holds(batch, RowBatch(expected.request_features, expected.candidate_features, views, expected.texts))


def assert_holds(batch: SearchBatch, expected: RowBatch) -> None:
    for found, wanted in zip(
        (batch.request_features, batch.candidate_features),
        (expected.request_features, expected.candidate_features),
        strict=True,
    ):
        assert found.keys() == wanted.keys() and found.stride() == wanted.stride()
        assert torch.equal(found.values(), wanted.values()) and torch.equal(found.lengths(), wanted.lengths())
        weights = found.weights_or_none(), wanted.weights_or_none()
        assert (weights[0] is None) == (weights[1] is None)
        assert weights[0] is None or torch.allclose(weights[0], weights[1], rtol=1e-6)
    tensors = {name: batch[name] for name in batch.layout.places}
    for name, found in [*tensors.items(), *batch.texts.items()]:
        wanted = expected.texts[name] if name in batch.texts else expected.views[name]
        assert found.dtype == wanted.dtype and found.shape == wanted.shape, name
        assert torch.equal(found.nan_to_num(-7), wanted.nan_to_num(-7)), name
