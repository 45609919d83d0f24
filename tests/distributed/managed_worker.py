"""Tables of managed ids on the ranks of torchrun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from small_run import small_config

from prectr_torchrec.config import RunConfig
from prectr_torchrec.distributed.managed import _collections
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.training.trainer import Trainer


def managed_config() -> RunConfig:
    """Few rows for many ids: of items (a sequence table of three features) and of title tokens (bags)."""
    config = small_config("row_wise", train={"log_every": 5, "checkpoint_every": 3})
    tree = config.model_dump(mode="json")
    for name in ("item", "title_token"):
        tree["tables"][name] |= {"ids": "managed", "rows": 16, "buckets": 4, "managed": {"interval": 2, "eviction": "lru"}}
    return RunConfig.model_validate(tree)


def train(data: str, run: str) -> None:
    """Trains, checking at each eviction that the rows restart clean; prints how many did."""
    cleared = {"rows": 0, "used": 0}
    with process_group("cpu") as process:
        trainer = Trainer(managed_config(), Path(data), Path(run), process)
        for collection in _collections(trainer.model):
            _watch(collection, cleared)
        trainer.train()
        assert {type(m).__name__ for m in trainer.pipeline._pipelined_modules} == {
            "ShardedEmbeddingCollection", "ShardedEmbeddingBagCollection", "_ShardedSequences",  "_ShardedBags",
        }  # fmt: skip
        print(f"rank {process.rank} cleared {json.dumps(cleared)}")


def _watch(collection: Any, cleared: dict[str, int]) -> None:
    evict = collection._evict

    def checked(evictions: dict[str, torch.Tensor | None]) -> None:
        before = {table: _rows(collection, table, rows) for table, rows in evictions.items() if rows is not None}
        evict(evictions)
        for table, (old, old_state) in before.items():
            weights, state = _rows(collection, table, evictions[table])
            bound = collection._embedding_module._table_name_to_config[table].num_embeddings ** -0.5
            assert (state == 0).all() and (weights.abs() <= bound).all()
            assert not len(weights) or not torch.equal(old, weights)
            cleared["rows"] += len(weights)
            cleared["used"] += int((old_state > 0).sum())

    collection._evict = checked


def _rows(collection: Any, table: str, rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    kernel, number = collection._table_to_tbe_and_index[table]
    state = kernel.split_optimizer_states()[int(number)][0]
    return kernel.split_embedding_weights()[int(number)][rows].clone(), state[rows].clone()
