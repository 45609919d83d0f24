"""Saves large shards as blocks of rows, so that a checkpoint is written and read without a second copy of a table in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

BLOCK_BYTES = 2**26


class RowBlockPlanner(DefaultSavePlanner):
    """Distributed Checkpoint reads every piece that it wrote as a whole, beside the tensor that it goes into. One piece a shard
    is a second table; here it is one block. What is read need not have been written in the same blocks.

    Args:
        nbytes: largest block.
    """

    def __init__(self, nbytes: int = BLOCK_BYTES) -> None:
        super().__init__()
        self._nbytes = nbytes

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        self.plan = replace(plan, items=[block for item in plan.items for block in self._blocks(item)])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        whole = self.state_dict[index.fqn]
        if not _is_cut(whole):
            return super().lookup_object(index)
        blocks = (self._rows_at(shard.tensor, shard.metadata, index) for shard in whole.local_shards())
        return next(block for block in blocks if block is not None)

    def _blocks(self, item: WriteItem) -> Iterator[WriteItem]:
        if not _is_cut(self.state_dict[item.index.fqn]):
            yield item
            return
        assert item.tensor_data is not None and item.tensor_data.chunk is not None
        (first, *columns), (rows, *widths) = item.tensor_data.chunk.offsets, item.tensor_data.chunk.sizes
        step = self._step(widths, item.tensor_data.properties.dtype)
        for start in range(0, max(rows, 1), step):
            offsets, sizes = torch.Size([first + start, *columns]), torch.Size([min(step, rows - start), *widths])
            data = replace(item.tensor_data, chunk=ChunkStorageMetadata(offsets, sizes))
            yield replace(item, index=MetadataIndex(item.index.fqn, offsets), tensor_data=data)

    def _rows_at(self, shard: Tensor, metadata: Any, index: MetadataIndex) -> Tensor | None:
        """The block of a shard that begins at `index.offset`, if it is one of this shard's."""
        (row, *columns), (first, *others) = index.offset, metadata.shard_offsets  # type: ignore[misc]
        if others != columns or not first <= row < first + max(shard.shape[0], 1):
            return None
        return shard[row - first : row - first + self._step(shard.shape[1:], shard.dtype)]

    def _step(self, widths: Any, dtype: torch.dtype) -> int:
        """Rows of a block."""
        return max(self._nbytes // max(torch.Size(widths).numel() * dtype.itemsize, 1), 1)


def _is_cut(value: Any) -> bool:
    """Rows and optimizer state are; the pieces of a list of managed ids tell how its ids were dealt to the ranks."""
    return isinstance(value, ShardedTensor) and value.dtype != torch.int64
