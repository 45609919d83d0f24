"""Sharders that admit row-wise on the CPU, and the plan from the configuration's constraints."""

from __future__ import annotations

import os
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ModuleSharder, ShardingPlan, ShardingType

from prectr_torchrec.config import RunConfig


class CpuEmbeddingBagCollectionSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder leaves row-wise types out on the CPU, where they run all the same."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        row_wise = [ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value]
        return list(dict.fromkeys([*super().sharding_types(compute_device_type), *row_wise]))


def sharders() -> list[ModuleSharder[nn.Module]]:
    """The sharders of both collections. Data-parallel is never among the constraints: the planner must not choose it, since
    such tables ignore an optimizer applied in backward."""
    return [CpuEmbeddingBagCollectionSharder(), EmbeddingCollectionSharder()]


def constraints(config: RunConfig) -> dict[str, ParameterConstraints]:
    """Planner constraints by table; pooling factors are the most lookups a request that the batch shape allows."""
    per_request = config.batch.candidates / config.batch.requests
    lengths = {"history": config.data.history_length, "peer": config.data.peer_length, "candidate": per_request}
    found = {}
    for name, table in config.tables.items():
        features = [f for f, feature in config.features.items() if feature.table == name]
        pooling = [
            lengths.get(f.split("_")[0], 1.0) * (config.text.title_tokens if f == "candidate_title_tokens" else 1)
            for f in features
        ]
        found[name] = ParameterConstraints(
            sharding_types=list(table.sharding), compute_kernels=[table.kernel], pooling_factors=pooling, min_partition=4
        )
    return found


def plan_sharding(module: nn.Module, config: RunConfig, device: torch.device) -> ShardingPlan:
    """Plans on rank 0 and sends the outcome to all ranks, a failure too: no rank waits for a plan that never comes.

    Raises:
        ValueError: the planner found no plan; carries its reason and the tables' constraints.
    """
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        world_size = dist.get_world_size()
        planner = EmbeddingShardingPlanner(
            topology=_topology(world_size, device),
            batch_size=config.batch.requests,
            constraints=constraints(config),
        )
        try:
            outcome = [planner.plan(module, sharders())]
        except Exception as error:  # sent on: the other ranks wait in the broadcast below
            tables = ", ".join(f"{n}: {'|'.join(t.sharding)}" for n, t in config.tables.items())
            outcome = [f"no sharding plan for {world_size} ranks on {device.type} with tables.*.sharding {{{tables}}}: {error}"]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], str):
        raise ValueError(outcome[0])
    return cast(ShardingPlan, outcome[0])


def _topology(world_size: int, device: torch.device) -> Topology:
    """The machines as they are, where TorchRec's defaults are somebody else's."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hbm = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return Topology(
        world_size=world_size, local_world_size=local, compute_device=device.type, ddr_cap=memory // local, hbm_cap=hbm or None
    )


def plan_to_dict(plan: ShardingPlan) -> dict[str, dict[str, dict[str, Any]]]:
    """A plan as plain values: module -> table -> sharding type, kernel, ranks, shard sizes."""
    return {
        path: {
            table: {
                "sharding_type": sharding.sharding_type,
                "compute_kernel": sharding.compute_kernel,
                "ranks": list(sharding.ranks or []),
                "shards": [list(s.shard_sizes) for s in getattr(sharding.sharding_spec, "shards", [])],
            }
            for table, sharding in module_plan.items()
        }
        for path, module_plan in plan.plan.items()
    }
