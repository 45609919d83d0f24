"""A copy of a run's state in host memory, for a checkpoint that is written while training goes on."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.checkpoint.staging import AsyncStager


class HostCopy(AsyncStager):
    """Stages for `async_save` by one copy of this rank's shards; Distributed Checkpoint's own stagers copy sharded tensors twice
    or not at all."""

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {name: _copied(value) for name, value in state_dict.items()}

    def synchronize_staging(self) -> None:
        """The copy is there when `stage` returns."""

    def close(self) -> None:
        """It holds nothing."""


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    if isinstance(value, ShardedTensor):
        if any(shard.tensor.device.type != "cpu" for shard in value.local_shards()):
            return value.cpu()
        shards = [Shard(shard.tensor.detach().clone(), shard.metadata) for shard in value.local_shards()]
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            shards, value.metadata(), process_group=value._process_group
        )
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
