"""Ids without bound: raw ids get rows of their own, and rows of ids no longer in use are cleared and given to others.

TorchRec's managed collisions, with what they lack for a job that is measured, checkpointed and run on the CPU: counters, a
history that is never cut off, a flush before a save, and a reset of evicted rows that reaches the optimizer's state. TorchRec
resets by FBGEMM's operator `reset_weight_momentum`, which has no CPU kernel, is handed no tensor in host memory, and knows
row-wise Adagrad only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.mc_embedding import (
    ManagedCollisionEmbeddingCollectionSharder,
    ShardedManagedCollisionEmbeddingCollection,
)
from torchrec.distributed.mc_embedding_modules import BaseShardedManagedCollisionEmbeddingCollection
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionModule,
    MCHEvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from prectr_torchrec.config.tables import MANAGED_IDS, TableConfig
from prectr_torchrec.system.doctor import quiet_deprecations
from prectr_torchrec.system.errors import ConfigError

with warnings.catch_warnings():  # it compiles a function as torch 2.14 no longer wants it
    quiet_deprecations()
    from torchrec.modules.hash_mc_evictions import HashZchEvictionConfig, HashZchEvictionPolicyName
    from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule


class SortedIds(MCHManagedCollisionModule):
    """A sorted list of the ids that have rows (`MCHManagedCollisionModule`), with counters.

    Each rank keeps the ids of its rows. The last of a rank's rows is shared by its ids that have none.

    Attributes:
        lookups, hits: ids looked up in training since `take_counts`, and those of them with a row of their own.
        evictions: ids that lost their row since then.
        held: no id is admitted or evicted any more.
    """

    held = False
    lookups = 0
    hits = 0
    evictions = 0
    _history_accumulator: Tensor

    def train(self, mode: bool = True) -> SortedIds:
        return super().train(mode and not self.held)

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        if self.training:
            if self._input_history_buffer_size == -1:
                self._init_history_buffers(features)
            needed = self._current_history_buffer_offset + sum(feature.values().numel() for feature in features.values())
            if needed > self._input_history_buffer_size:  # TorchRec would leave out what no longer fits
                self._grow_history(2 * needed)
        return super().profile(features)

    def remap(
        self, features: dict[str, JaggedTensor], mutate_miss_lengths: bool = True, write_weights: Tensor | None = None
    ) -> dict[str, JaggedTensor]:
        remapped = super().remap(features, mutate_miss_lengths, write_weights)
        if self.training:
            shared = self._output_global_offset + self._zch_size - 1
            self.lookups += sum(feature.values().numel() for feature in remapped.values())
            self.hits += sum(int((feature.values() != shared).sum()) for feature in remapped.values())
        return remapped

    def flush(self) -> None:
        """Ends the interval now, so that nothing waits that a checkpoint does not hold."""
        if self._current_history_buffer_offset:
            self._coalesce_history()
        self._last_eviction_iter = self._current_iter

    def take_counts(self) -> dict[str, int]:
        """The counters since the last call, and rows in use and in all, of this rank."""
        counts = {"lookups": self.lookups, "hits": self.hits, "evictions": self.evictions}
        self.lookups = self.hits = self.evictions = 0
        rows = self._zch_size - 1
        return {**counts, "used": rows - int(self.open_slots()), "rows": rows}

    def validate_state(self) -> None:
        """Called when a state was loaded.

        Raises:
            ConfigError: it was saved by ranks whose shards this rank's rows are no union of.
        """
        start, saved = self._output_global_offset, self._output_segments_tensor
        if start not in saved or start + self._zch_size not in saved:
            ranks = int((saved >= 0).sum()) - 1
            raise ConfigError(
                f"the managed ids of table {self._name} were saved by {ranks} ranks; load them on {ranks} or on a divisor of it"
            )
        super().validate_state()

    def _update_and_evict(self, uniq_ids: Tensor, uniq_ids_counts: Tensor, uniq_ids_metadata: dict[str, Tensor]) -> None:
        assert not self._evicted, "evictions are carried out in the step or flush that makes them"
        before = int(self.open_slots())
        super()._update_and_evict(uniq_ids, uniq_ids_counts, uniq_ids_metadata)
        self.evictions += self._evicted_emb_indices.numel() - (before - int(self.open_slots()))

    def _grow_history(self, size: int) -> None:
        used = self._current_history_buffer_offset
        self._history_accumulator = _grown(self._history_accumulator, used, size)
        for name, buffer in self._history_metadata.items():
            self._history_metadata[name] = _grown(buffer, used, size)
            setattr(self, f"_history_{name}", self._history_metadata[name])
        self._input_history_buffer_size = size


class ProbedIds(HashZchManagedCollisionModule):
    """A hash table of the ids that have rows, on a GPU.

    Attributes:
        held: no id is admitted or evicted any more.
    """

    held = False

    def train(self, mode: bool = True) -> ProbedIds:
        return super().train(mode and not self.held)


def make_managed(name: str, table: TableConfig, device: torch.device) -> ManagedCollisionModule:
    """What gives the ids of a table their rows; the sharder makes each rank's own of it."""
    settings = table.managed
    if settings.algorithm == "multi_probe":
        return ProbedIds(
            zch_size=table.rows,
            device=device,
            total_num_buckets=table.buckets,
            max_probe=settings.max_probe,
            input_hash_size=MANAGED_IDS,
            name=name,
            eviction_policy_name=HashZchEvictionPolicyName.LRU_EVICTION,
            eviction_config=HashZchEvictionConfig(features=[name], single_ttl=0),  # whoever was not seen this hour may go
        )
    return SortedIds(
        zch_size=table.rows,
        device=device,
        eviction_policy=_policy(table),
        eviction_interval=settings.interval,
        input_hash_size=MANAGED_IDS,
        buckets=table.buckets,
        name=name,
    )


def flush_managed(model: nn.Module) -> None:
    """Ends the interval of every managed table of a sharded model and clears what was evicted; to be called before a save."""
    for collection in _collections(model):
        for module in collection._managed_collision_collection._managed_collision_modules.values():
            if isinstance(module, SortedIds):
                module.flush()
        collection._evict(collection._managed_collision_collection.evict())


def hold_managed(model: nn.Module, tables: set[str]) -> None:
    """Leaves the ids of these tables of a sharded model the rows that they have."""
    for collection in _collections(model):
        for table, module in collection._managed_collision_collection._managed_collision_modules.items():
            if table in tables:
                module.held = True


def managed_counts(model: nn.Module) -> dict[str, dict[str, int]]:
    """By table, this rank's counters since the last call."""
    return {
        table: module.take_counts()
        for collection in _collections(model)
        for table, module in collection._managed_collision_collection._managed_collision_modules.items()
        if isinstance(module, SortedIds)
    }


class _ClearedRows:
    """Evicted rows restart as at first: weights drawn anew, no optimizer state."""

    _table_to_tbe_and_index: dict[str, Any]
    _embedding_module: Any

    @torch.no_grad()
    def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
        for table, rows in evictions_per_table.items():
            if rows is None or not rows.numel():
                continue
            kernel, number = self._table_to_tbe_and_index[table]
            weights = kernel.split_embedding_weights()[int(number)]
            fresh = torch.empty(rows.numel(), weights.shape[1], device=weights.device)
            weights[rows] = self._embedding_module._table_name_to_config[table].init_fn(fresh).to(weights.dtype)
            for state in kernel.split_optimizer_states()[int(number)]:
                if state.shape[0] == weights.shape[0]:
                    state[rows] = 0


class _ShardedSequences(_ClearedRows, ShardedManagedCollisionEmbeddingCollection):
    pass


class _ShardedBags(_ClearedRows, ShardedManagedCollisionEmbeddingBagCollection):
    pass


class ManagedSequencesSharder(ManagedCollisionEmbeddingCollectionSharder):
    """Shards managed sequence tables by rows."""

    def shard(self, module: Any, params: Any, env: Any, device: Any = None, module_fqn: str | None = None) -> Any:
        return _ShardedSequences(module, params, self._e_sharder, self._mc_sharder, env, device)


class ManagedBagsSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """Shards managed tables of bags by rows."""

    def shard(self, module: Any, params: Any, env: Any, device: Any = None, module_fqn: str | None = None) -> Any:
        return _ShardedBags(module, params, self._e_sharder, self._mc_sharder, env, device)


def _policy(table: TableConfig) -> MCHEvictionPolicy:
    settings = table.managed
    admit = partial(_admitted, minimum=settings.admission) if settings.admission > 1 else None
    if settings.eviction == "lfu":
        return LFU_EvictionPolicy(threshold_filtering_func=admit)
    policy = LRU_EvictionPolicy if settings.eviction == "lru" else DistanceLFU_EvictionPolicy
    return policy(decay_exponent=settings.decay, threshold_filtering_func=admit)


def _admitted(counts: Tensor, minimum: int) -> tuple[Tensor, float]:
    return counts >= minimum, minimum


def _collections(model: nn.Module) -> Iterator[BaseShardedManagedCollisionEmbeddingCollection]:
    return (part for part in model.modules() if isinstance(part, BaseShardedManagedCollisionEmbeddingCollection))


def _grown(buffer: Tensor, used: int, size: int) -> Tensor:
    larger = buffer.new_zeros(size)
    larger[:used] = buffer[:used]
    return larger
