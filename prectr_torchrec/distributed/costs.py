"""What the shards of a table cost: memory by tier, lookups and communication of a step.

The planner plans with these costs and `prectr plan` shows them, so that both agree with what a job then allocates. TorchRec's
own estimate takes the optimizer state to be of the rows' dtype (half of what row-wise Adagrad keeps beside fp16) and to lie
beside the rows, where FBGEMM leaves row-wise state in HBM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torchrec.distributed.planner.types import SharderDataMap, ShardEstimator, ShardingOption, Storage

from prectr_torchrec.config.kernels import KERNELS
from prectr_torchrec.config.tables import INT8_ROW, TableConfig
from prectr_torchrec.distributed.workload import Workload

ID_BYTES = 8
VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1 + 8 / INT8_ROW}
"""Of a looked-up number on its way; kernels return and take fp32."""


class Hardware(NamedTuple):
    """Equal ranks on equal hosts; bytes."""

    ranks: int
    ranks_per_host: int
    hbm: int
    """Of each GPU; 0 on CPU ranks."""
    ddr: int
    """Of each host."""
    ssd: int = 0
    """Of each host."""
    device: str = "cuda"

    @property
    def per_rank(self) -> Storage:
        """A rank's share of the three tiers."""
        return Storage(hbm=self.hbm, ddr=self.ddr // self.ranks_per_host, ssd=self.ssd // self.ranks_per_host)


class ShardCost(NamedTuple):
    """Bytes of one shard on the rank that holds it, and its work in a step."""

    weights: int
    state: int
    """Of the optimizer."""
    ids: int
    """Of managed ids: which id has which row, and when or how often it was seen."""
    storage: Storage
    """By tier: weights, state, ids, cache and the buffers of a step."""
    lookups: float
    communication: float
    """Bytes to and from other ranks: ids, vectors forward, gradients backward."""


def weight_bytes(table: TableConfig, rows: int, columns: int) -> int:
    """Bytes of a block of a table."""
    return rows * columns * {"fp32": 4, "fp16": 2}[table.dtype]


def state_bytes(table: TableConfig, rows: int, columns: int) -> int:
    """Bytes of the optimizer's state of a block of a table: fp32 whatever the rows are."""
    return 4 * rows * (1 if table.optimizer == "rowwise_adagrad" else columns)


def id_bytes(table: TableConfig, rows: int) -> int:
    """Bytes of what gives managed ids their rows: id and row, and counts or steps (both for `distance_lfu`), int64 each."""
    if table.ids == "hashed":
        return 0
    if table.managed.algorithm == "multi_probe":
        return 12 * rows  # id, and an int32 of its age
    return 8 * rows * (4 if table.managed.eviction == "distance_lfu" else 3)


def shard_cost(workload: Workload, name: str, size: Sequence[int], *, kernel: str, ranks: int, device: str) -> ShardCost:
    """The cost of a shard of `size` rows and columns of table `name`, looked up by `ranks` ranks."""
    table, inputs = workload.tables[name], workload.inputs[name]
    rows, columns = size
    weights, state = weight_bytes(table, rows, columns), state_bytes(table, rows, columns)
    lookups = ranks * sum(i.rows * i.length for i in inputs) * rows / table.rows
    # a bag is summed where its rows are: one vector for each row of the batch, from each block of rows
    vectors = ranks * sum(i.rows for i in inputs) if workload.is_pooled(name) else lookups
    values = vectors * columns
    away = (ranks - 1) / ranks
    moved = VALUE_BYTES[workload.communication.forward] + VALUE_BYTES[workload.communication.backward]
    communication = away * (ID_BYTES * lookups + moved * values)
    buffers = round(2 * ID_BYTES * lookups + 2 * 4 * values)  # two batches of ids in the pipeline; vectors, gradients
    ids = id_bytes(table, rows)
    storage = _by_tier(table, rows, weights, state, ids + buffers, kernel, device)
    return ShardCost(weights, state, ids, storage, lookups, communication)


def _by_tier(table: TableConfig, rows: int, weights: int, state: int, work: int, kernel: str, device: str) -> Storage:
    if device == "cpu":
        return Storage(hbm=0, ddr=weights + state + work)
    facts, share = KERNELS[kernel], table.cache.load_factor
    tiers = {"hbm": work, "ddr": 0, "ssd": 0}
    tiers[facts.rows] += weights
    tiers[facts.rowwise_state if table.optimizer == "rowwise_adagrad" else facts.state] += state
    if facts.cache is not None:
        bookkeeping = facts.cache.bytes_per_row + share * facts.cache.bytes_per_slot
        tiers["hbm"] += round(share * weights + rows * bookkeeping)
    return Storage(**tiers)


class StorageEstimator(ShardEstimator):
    """Tells TorchRec's planner the memory of every shard that it considers.

    Args:
        workload: tables and lookups.
        hardware: how many ranks look up, and on which device.
    """

    def __init__(self, workload: Workload, hardware: Hardware) -> None:
        self._workload, self._hardware = workload, hardware

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: SharderDataMap) -> None:
        for option in sharding_options:
            for shard in option.shards:
                shard.storage = shard_cost(
                    self._workload,
                    option.name,
                    shard.size,
                    kernel=option.compute_kernel,
                    ranks=self._hardware.ranks,
                    device=self._hardware.device,
                ).storage
