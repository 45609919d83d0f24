"""Tables of managed ids on the ranks of torchrun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from small_run import small_config
from torchrec import KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.tables import MANAGED_IDS
from prectr_torchrec.data.hashing import table_rows
from prectr_torchrec.distributed.managed import _collections, managed_counts
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.distributed.sharding import plan_sharding, sharders
from prectr_torchrec.distributed.table_collections import build_embeddings
from prectr_torchrec.distributed.workload import build_workload
from prectr_torchrec.training.optimizers import apply_table_optimizers
from prectr_torchrec.training.trainer import Trainer


def managed_config() -> RunConfig:
    """Few rows for many ids: of items (a sequence table of three features) and of title tokens (bags). No save falls on the end
    of an interval."""
    config = small_config("row_wise", train={"log_every": 5, "checkpoint_every": 3})
    tree = config.model_dump(mode="json")
    for name in ("item", "title_token"):
        tree["tables"][name] |= {"ids": "managed", "rows": 16, "buckets": 4, "managed": {"interval": 5}}
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
            "ShardedEmbeddingCollection",
            "ShardedEmbeddingBagCollection",
            "_ShardedSequences",
            "_ShardedBags",
        }
        print(f"rank {process.rank} cleared {json.dumps(cleared)} in all")


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


def drift(rows: int, times: int) -> None:
    """A stream of ids that goes through `times` the rows of a sequence table of two features, and of a bag table."""
    config = drift_config(rows)
    cleared = {"rows": 0, "used": 0}
    with process_group("cpu") as process:
        embeddings = build_embeddings(config.tables, config.features, torch.device("meta"))
        apply_table_optimizers(embeddings, config.tables, config.train.stages)
        plan = plan_sharding(embeddings, build_workload(config), process.device)
        model = DistributedModelParallel(
            embeddings, device=process.device, plan=plan, sharders=sharders(config.communication, "cpu")
        )
        for collection in _collections(model):
            _watch(collection, cleared)
        random = torch.Generator().manual_seed(process.rank)
        for step in range(steps := 100):
            first = step * times * rows // steps

            def ids(length: int, first: int = first) -> torch.Tensor:
                raw = first + torch.randint(rows, (length,), generator=random)
                return torch.from_numpy(table_rows(raw.numpy(), MANAGED_IDS))

            of_requests = KeyedJaggedTensor.from_lengths_sync(
                ["item_id", "history_item_id"], ids(64), torch.full((32,), 2, dtype=torch.int32)
            )
            of_candidates = KeyedJaggedTensor.from_lengths_sync(
                ["candidate_brand_id"], ids(32), torch.ones(32, dtype=torch.int32)
            )
            sequences, bags = model(of_requests, of_candidates)
            loss = sum(sequence.values().square().sum() for sequence in sequences.values()) + bags["candidate_brand_id"].sum()
            loss.backward()
        print(f"rank {process.rank} drifted {json.dumps({**cleared, 'counts': managed_counts(model)})} in all")


def drift_config(rows: int) -> RunConfig:
    table = {"rows": rows, "dim": 4, "ids": "managed", "buckets": 2, "sharding": ["row_wise"], "managed": {"interval": 2}}
    features = {
        "item_id": {"table": "item"},
        "history_item_id": {"table": "item", "sequence": "history"},
        "candidate_brand_id": {"table": "brand"},
    }
    return RunConfig.model_validate({"name": "drift", "tables": {"item": table, "brand": table}, "features": features})
