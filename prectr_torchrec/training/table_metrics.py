"""How full the tables are, and how well ids find rows of their own."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel

from prectr_torchrec.config.tables import TableConfig
from prectr_torchrec.distributed.managed import managed_counts
from prectr_torchrec.training.optimizers import Optimizers

_COUNTS = ("used", "rows", "lookups", "hits", "evictions")


def table_metrics(
    model: DistributedModelParallel, optimizers: Optimizers, tables: dict[str, TableConfig]
) -> dict[str, dict[str, float]]:
    """Measures every table over all ranks; collective.

    Returns:
        for a table of managed ids its `occupancy` and, since the last call, the `hit_rate` of training (lookups of ids with a
        row of their own) and `evictions`; for one of hashed ids its `collision_rate`, the chance that a further id shares its
        row, that is the share of rows trained on.
    """
    counts = managed_counts(model) | _trained_rows(model, optimizers, tables)
    local = [[counts.get(name, {}).get(count, 0) for count in _COUNTS] for name in tables]
    total = torch.tensor(local, dtype=torch.int64, device=model.device)
    dist.all_reduce(total)
    measured: dict[str, dict[str, float]] = {}
    for name, (used, rows, lookups, hits, evictions) in zip(tables, total.tolist(), strict=True):
        if tables[name].ids == "hashed":
            measured[name] = {"collision_rate": used / tables[name].rows}
        elif rows:
            measured[name] = {"occupancy": used / rows, "hit_rate": hits / max(lookups, 1), "evictions": evictions}
    return measured


def _trained_rows(
    model: DistributedModelParallel, optimizers: Optimizers, tables: dict[str, TableConfig]
) -> dict[str, dict[str, int]]:
    """Rows of hashed tables, on this rank, that have an optimizer state: Adagrad's sum is zero only where nothing was learned."""
    weights, found = model.state_dict(), {}
    for name, states in optimizers.fused.state_dict()["state"].items():
        table = name.split(".")[-2]
        if table not in tables or tables[table].ids == "managed":
            continue
        shards = zip(weights[name].local_shards(), next(iter(states.values())).local_shards(), strict=True)
        first_columns = [state.tensor for weight, state in shards if weight.metadata.shard_offsets[1] == 0]
        found[table] = {"used": sum(int(s.view(s.shape[0], -1)[:, 0].count_nonzero()) for s in first_columns)}
    return found
