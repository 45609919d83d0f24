"""Sharders that admit row-wise on the CPU, the plan from the configuration's constraints, and plans as plain values."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.sharding_plan import placement
from torchrec.distributed.types import (
    CacheAlgorithm,
    CacheParams,
    CommOp,
    EmbeddingModuleShardingPlan,
    KeyValueParams,
    ModuleSharder,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingPlan,
    ShardingType,
)

from prectr_torchrec.config.tables import INT8_ROW, CommunicationConfig, TableConfig
from prectr_torchrec.distributed.costs import Hardware, StorageEstimator
from prectr_torchrec.distributed.device import check_device
from prectr_torchrec.distributed.managed import ManagedBagsSharder, ManagedSequencesSharder
from prectr_torchrec.distributed.workload import Workload
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.system.plain_files import read_json

PlainShardingPlan = dict[str, dict[str, dict[str, Any]]]
"""A sharding plan as plain values: module -> table -> `sharding_type`, `compute_kernel`, `ranks`, `shards` (rows, columns)."""

_UNIT = 4
"""Columns that FBGEMM handles together."""
RESERVED_HBM = 0.15
"""Share of each GPU's memory left to towers, activations and fragmentation."""


class CpuEmbeddingBagCollectionSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder leaves row-wise types out on the CPU, where they run all the same."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        row_wise = [ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value]
        return list(dict.fromkeys([*super().sharding_types(compute_device_type), *row_wise]))


def sharders(communication: CommunicationConfig, device: str) -> list[ModuleSharder[nn.Module]]:
    """The sharders of all collections. Data-parallel is never among the constraints: the planner must not choose it, since
    such tables ignore an optimizer applied in backward."""
    codecs = _codecs(communication, device)
    bags, sequences = CpuEmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs), EmbeddingCollectionSharder(None, codecs)
    return [bags, sequences, ManagedBagsSharder(bags), ManagedSequencesSharder(sequences)]


def _codecs(communication: CommunicationConfig, device: str) -> dict[str, QuantizedCommCodecs] | None:
    """How vectors and gradients are packed for each collective; None: as they are."""
    forward, backward = CommType(communication.forward), CommType(communication.backward)
    if forward == backward == CommType.FP32:
        return None
    packed = QCommsConfig(forward_precision=forward, backward_precision=backward)
    int8_as_fp16 = [CommType.FP16 if precision == CommType.INT8 else precision for precision in (forward, backward)]
    summed = QCommsConfig(*int8_as_fp16)  # packed int8 rows cannot be added up on their way
    exchanges = [CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL, CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL]
    where = torch.device(device)
    codecs = get_qcomm_codecs_registry(packed, exchanges, where) or {}
    return codecs | (get_qcomm_codecs_registry(summed, [CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER], where) or {})


def sharding_types(table: TableConfig, ranks: int) -> list[str]:
    """The types that the planner may choose among: rows in blocks of equal size may not be enough for all ranks, and on one
    rank a table by rows is a whole table, with the same state, and is looked up together with the other whole ones."""
    others = [kind for kind in table.sharding if "row_wise" not in kind]
    enough = ranks > 1 and -(-table.rows // ranks) * (ranks - 1) < table.rows
    if enough or table.in_buckets or len(others) == len(table.sharding):
        return list(table.sharding)
    return list(dict.fromkeys([*others, "table_wise"]))


def shard_columns(table: TableConfig, communication: CommunicationConfig, ranks: int) -> int:
    """Columns of a column-wise shard of a table."""
    unit = _UNIT
    if "int8" in (communication.forward, communication.backward):
        unit = INT8_ROW
    if table.shard_columns is not None:
        return max(unit, table.shard_columns)
    cuts = [cut for cut in range(1, ranks + 1) if table.dim % (cut * unit) == 0]
    return table.dim // max(cuts, default=1)


def constraints(workload: Workload, ranks: int) -> dict[str, ParameterConstraints]:
    """Planner constraints by table."""
    found = {}
    for name, table in workload.tables.items():
        inputs, kernel = workload.inputs[name], table.kernel_facts
        cache = CacheParams(CacheAlgorithm[table.cache.algorithm.upper()], table.cache.load_factor)
        found[name] = ParameterConstraints(
            sharding_types=sharding_types(table, ranks),
            compute_kernels=[table.kernel],
            pooling_factors=[float(i.length) for i in inputs],
            batch_sizes=[i.rows for i in inputs],
            min_partition=shard_columns(table, workload.communication, ranks),
            cache_params=cache if kernel.cache is not None else None,
            stochastic_rounding=table.stochastic_rounding,
            key_value_params=KeyValueParams(ssd_storage_directory=table.cache.ssd_directory) if kernel.store else None,
            use_virtual_table=kernel.virtual,
        )
    return found


def make_plan(module: nn.Module, workload: Workload, hardware: Hardware) -> ShardingPlan:
    """Plans for any hardware; needs neither it nor a process group.

    Args:
        module: unsharded collections, on `meta` at will.

    Raises:
        PlannerError, RuntimeError: the planner found no plan.
    """
    storage = hardware.per_rank
    topology = Topology(
        world_size=hardware.ranks,
        local_world_size=hardware.ranks_per_host,
        compute_device=hardware.device,
        hbm_cap=storage.hbm,
        ddr_cap=storage.ddr,
        ssd_cap=storage.ssd,
    )
    limits, batch = constraints(workload, hardware.ranks), workload.requests
    estimators = [EmbeddingPerfEstimator(topology, limits), StorageEstimator(workload, hardware)]
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch,
        constraints=limits,
        enumerator=EmbeddingEnumerator(topology, batch, limits, estimator=estimators),
        storage_reservation=FixedPercentageStorageReservation(RESERVED_HBM),
        stats=[],
    )
    return planner.plan(module, sharders(workload.communication, hardware.device))


def plan_sharding(
    module: nn.Module, workload: Workload, device: torch.device, plan: PlainShardingPlan | None = None
) -> ShardingPlan:
    """Plans on rank 0 and sends the outcome to all ranks, a failure too: no rank waits for a plan that never comes.

    Args:
        plan: where there is one already, it is taken.

    Raises:
        ValueError: the planner found no plan; carries its reason and the tables' constraints.
        ConfigError: `plan` is for other tables, settings or ranks.
    """
    check_device(workload.tables, workload.communication, device.type, dist.get_world_size())
    if plan is not None:
        return plan_from_dict(plan, module, workload, here(device))
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        for name, table in workload.tables.items():
            if dist.get_world_size() > 1 and sharding_types(table, dist.get_world_size()) != list(table.sharding):
                print(
                    f"note: tables.{name}: {table.rows} rows by rows leave a rank of {dist.get_world_size()} without one, so "
                    "that table_wise is taken",
                    file=sys.stderr,
                )
        try:
            outcome = [make_plan(module, workload, here(device))]
        except Exception as error:  # sent on: the other ranks wait in the broadcast below
            tables = ", ".join(f"{n}: {'|'.join(t.sharding)}" for n, t in workload.tables.items())
            found = f"{dist.get_world_size()} ranks on {device.type} with tables.*.sharding {{{tables}}}"
            outcome = [f"no sharding plan for {found}: {error}"]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], str):
        raise ValueError(outcome[0])
    return cast(ShardingPlan, outcome[0])


def host_memory() -> int:
    """Bytes that this process may take: the host's, or the least that a container or a batch system's job leaves of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own = next((line[3:] for line in _lines(Path("/proc/self/cgroup")) if line.startswith("0::")), "/").lstrip("/")
    root = Path("/sys/fs/cgroup")
    for folder in (root / own, *(root / own).parents):
        if folder.is_relative_to(root):
            limits += [int(line) for line in _lines(folder / "memory.max") if line.isdigit()]
    return min(limits)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def here(device: torch.device) -> Hardware:
    """The machines as they are, where TorchRec's defaults are somebody else's."""
    ranks = dist.get_world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    memory = host_memory()
    hbm = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return Hardware(ranks, local, hbm, memory, device=device.type)


def plan_to_dict(plan: ShardingPlan) -> PlainShardingPlan:
    """A plan as plain values."""
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


@only_local
def read_plan(path: Path) -> PlainShardingPlan:
    """A plan from the file that `prectr plan --save` or a run wrote.

    Raises:
        ConfigError: the file is no plan.
    """
    try:
        plan: PlainShardingPlan = read_json(path, PlainShardingPlan)
    except ValueError as error:
        raise ConfigError(f"{error}: no sharding plan; write one with `prectr plan --save`") from None
    keys = {"sharding_type", "compute_kernel", "ranks", "shards"}
    tables = [table for part in plan.values() for table in part.values()]
    if not tables or not all(keys <= table.keys() for table in tables):
        raise ConfigError(f"{path}: no sharding plan; write one with `prectr plan --save`")
    return plan


def plan_from_dict(plan: PlainShardingPlan, module: nn.Module, workload: Workload, hardware: Hardware) -> ShardingPlan:
    """The plan that `plan_to_dict` made plain, for these ranks.

    Args:
        module: unsharded collections, whose tables the plan must name.

    Raises:
        ConfigError: the plan is for other tables, settings or ranks; names the table.
    """
    needed = max((rank for tables in plan.values() for table in tables.values() for rank in table["ranks"]), default=-1) + 1
    if needed > hardware.ranks:
        raise ConfigError(f"the plan is for {needed} ranks; here are {hardware.ranks}: make one with --gpus {hardware.ranks}")
    made = {sharder.module_type: sharder for sharder in sharders(workload.communication, hardware.device)}
    found_in = {
        path: part for path, part in module.named_modules() if type(part) in made and not path.endswith("._embedding_module")
    }
    paths = {path: made[type(part)].shardable_parameters(part) for path, part in found_in.items()}
    limits = constraints(workload, hardware.ranks)
    found: dict[str, Any] = {}
    for path, parameters in paths.items():
        planned = plan.get(path, {})
        if planned.keys() != parameters.keys():
            raise ConfigError(
                f"the plan of {path} has the tables {sorted(planned)}; the configuration has {sorted(parameters)}: plan again"
            )
        tables = {
            name: _sharding(name, planned[name], p.shape, workload.tables[name], limits[name], hardware)
            for name, p in parameters.items()
        }
        found[path] = EmbeddingModuleShardingPlan(tables)
    return ShardingPlan(found)


def _sharding(
    name: str, planned: dict[str, Any], shape: torch.Size, table: TableConfig, limits: ParameterConstraints, hardware: Hardware
) -> ParameterSharding:
    kind, kernel, sizes = planned["sharding_type"], planned["compute_kernel"], planned["shards"]
    if kind not in (allowed := sharding_types(table, hardware.ranks)) or kernel != table.kernel:
        raise ConfigError(
            f"tables.{name}: the plan has sharding {kind} and kernel {kernel}; the configuration allows "
            f"{'|'.join(allowed)} and {table.kernel}: plan again"
        )
    by_rows = sizes[0][1] == shape[1]
    whole = [sum(s[0] for s in sizes), shape[1]] if by_rows else [shape[0], sum(s[1] for s in sizes)]
    if whole != list(shape):
        raise ConfigError(
            f"tables.{name}: the plan has {whole[0]} rows x {whole[1]}; the configuration has {shape[0]} x {shape[1]}: plan again"
        )
    if kind == ShardingType.ROW_WISE.value and len(sizes) != hardware.ranks:
        raise ConfigError(f"tables.{name}: the plan is for {len(sizes)} ranks; here are {hardware.ranks}: plan again")
    shards, start = [], [0, 0]
    for size, rank in zip(sizes, planned["ranks"], strict=True):
        where = placement(hardware.device, rank, hardware.ranks_per_host)
        shards.append(ShardMetadata(shard_offsets=list(start), shard_sizes=list(size), placement=where))
        start[0 if by_rows else 1] += size[0 if by_rows else 1]
    return ParameterSharding(
        sharding_spec=EnumerableShardingSpec(shards),
        sharding_type=kind,
        compute_kernel=kernel,
        ranks=list(planned["ranks"]),
        cache_params=limits.cache_params,
        stochastic_rounding=limits.stochastic_rounding,
        key_value_params=limits.key_value_params,
    )
