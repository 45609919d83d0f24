"""Managed against hashed ids of a drifting stream, at equal memory: AUC of each sample before it is learned from.

    python benchmarks/managed_ids.py --ranks 2 --rows 8400 --drift 50

Ids live for a while and never come back: at any time as many are live as `--live` says, in units of the table's rows, and the
stream goes through `--drift` times the rows. Each id has a click rate of its own, `sigmoid(2 w)`, `w` normal: nothing but its row
can know it. Hashed tables get as many rows more as the managed table's list of ids takes.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from common import describe
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.hashing import mix64, table_rows
from prectr_torchrec.distributed.costs import id_bytes, state_bytes, weight_bytes
from prectr_torchrec.distributed.launch import _run_ranks
from prectr_torchrec.distributed.managed import managed_counts
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.distributed.sharding import plan_sharding, sharders
from prectr_torchrec.distributed.table_collections import build_embeddings
from prectr_torchrec.distributed.workload import build_workload
from prectr_torchrec.modules import SearchEmbeddings
from prectr_torchrec.training.optimizers import apply_table_optimizers

DIM = 32
FEATURE = "candidate_item_id"


class Clicks(nn.Module):
    """A logit for each id, and nothing else."""

    def __init__(self, embeddings: SearchEmbeddings) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.head = nn.Linear(DIM, 1)

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        return self.head(self.embeddings(ids, ids)[1][FEATURE]).squeeze(1)


def run_config(arguments: argparse.Namespace, ids: str, eviction: str) -> RunConfig:
    managed = {"eviction": eviction, "interval": arguments.interval}
    table: dict[str, Any] = {"rows": arguments.rows, "dim": DIM, "ids": "managed", "sharding": ["row_wise"], "managed": managed}
    config = RunConfig.model_validate(
        {
            "name": "drift",
            "tables": {"item": table},
            "features": {FEATURE: {"table": "item"}},
            "train": {"stages": [{"epochs": 1, "table_lr": arguments.lr}]},
        }
    )
    table_config = config.tables["item"]
    if ids == "hashed":
        row = weight_bytes(table_config, 1, DIM) + state_bytes(table_config, 1, DIM)
        table |= {"ids": "hashed", "rows": arguments.rows * (row + id_bytes(table_config, 1)) // row}
        return config.model_copy(update={"tables": {"item": type(table_config).model_validate(table)}})
    return config


def stream(step: int, arguments: argparse.Namespace, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and clicks of a rank's batch."""
    random = np.random.default_rng([arguments.seed, step, rank])
    live = int(arguments.live * arguments.rows)
    first = step * (arguments.drift * arguments.rows - live) / arguments.steps
    ids = (first + live * random.random(arguments.batch)).astype(np.int64)
    w = np.random.default_rng(arguments.seed).standard_normal(1 << 16)[mix64(ids + 1) % np.uint64(1 << 16)]
    return ids, (random.random(arguments.batch) < 1 / (1 + np.exp(-2 * w))).astype(np.float32)


def measure(config: RunConfig, arguments: argparse.Namespace, process: Process) -> dict[str, float] | None:
    """Trains over the whole stream; the figures, on rank 0."""
    torch.manual_seed(arguments.seed + process.rank)
    embeddings = build_embeddings(config.tables, config.features, torch.device("meta"))
    apply_table_optimizers(embeddings, config.tables, config.train.stages)
    task = Clicks(embeddings)
    plan = plan_sharding(task, build_workload(config), process.device)
    model = DistributedModelParallel(
        task, device=process.device, plan=plan, sharders=sharders(config.communication, process.device.type)
    )
    head = torch.optim.AdamW(task.head.parameters(), lr=3e-3)
    logits, clicks, since = [], [], time.perf_counter()
    for step in range(arguments.steps):
        ids, click = stream(step, arguments, process.rank)
        rows = torch.from_numpy(table_rows(ids, config.tables["item"].id_range))
        logit = model(KeyedJaggedTensor.from_lengths_sync([FEATURE], rows, torch.ones(len(rows), dtype=torch.int32)))
        head.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logit, torch.from_numpy(click)).backward()
        head.step()
        if step >= arguments.steps // 5:
            logits.append(logit.detach())
            clicks.append(torch.from_numpy(click))
    seconds = time.perf_counter() - since
    counts = managed_counts(model).get("item", {})
    packed = torch.stack([torch.cat(logits), torch.cat(clicks)])
    gathered = [torch.empty_like(packed) for _ in range(process.world_size)]
    dist.all_gather(gathered, packed)
    totals = torch.tensor([counts.get(name, 0) for name in ("hits", "lookups", "evictions", "used", "rows")])
    dist.all_reduce(totals)
    if process.rank:
        return None
    all_logits, all_clicks = torch.cat(gathered, dim=1).numpy()
    hits, lookups, evictions, used, rows_of_own = totals.tolist()
    figures = {"rows": config.tables["item"].rows, "auc": round(float(roc_auc_score(all_clicks, all_logits)), 4)}
    if lookups:
        figures |= {"hit_rate": round(hits / lookups, 4), "evictions": evictions, "occupancy": round(used / rows_of_own, 4)}
    return figures | {"samples_per_second": round(arguments.steps * arguments.batch * process.world_size / seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8_400)
    parser.add_argument("--drift", type=float, default=50)
    parser.add_argument("--live", type=float, default=0.8)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--interval", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--of-torchrun", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.of_torchrun:
        print(describe("torch", "torchrec"), flush=True)
        given = [word for name, value in vars(arguments).items() if name != "of_torchrun" for word in (f"--{name}", str(value))]
        _run_ranks(["--standalone", f"--nproc-per-node={arguments.ranks}", __file__, "--of-torchrun", *given])
        return
    with process_group("cpu") as process:
        for ids, eviction in (("hashed", "lru"), ("managed", "lru"), ("managed", "lfu"), ("managed", "distance_lfu")):
            figures = measure(run_config(arguments, ids, eviction), arguments, process)
            if figures is not None:
                print(f"{ids:<8} {eviction if ids == 'managed' else '-':<13} {json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    main()
