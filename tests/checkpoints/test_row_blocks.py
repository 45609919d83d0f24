from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, init_from_local_shards

from prectr_torchrec.checkpoints.row_blocks import RowBlockPlanner
from prectr_torchrec.distributed.process import process_group

WHOLE = torch.arange(60.0).view(10, 6)


def sharded(offsets_and_parts: list[tuple[list[int], Tensor]], size: tuple[int, ...]) -> ShardedTensor:
    shards = [Shard.from_tensor_and_offsets(part.clone(), offsets, rank=0) for offsets, part in offsets_and_parts]
    return init_from_local_shards(shards, *size)


def layouts(fill: float | None = None) -> dict[str, ShardedTensor]:
    """One matrix by rows and by columns, and a vector."""
    whole = WHOLE if fill is None else torch.full_like(WHOLE, fill)
    return {
        "rows": sharded([([0, 0], whole[:7]), ([7, 0], whole[7:])], (10, 6)),
        "columns": sharded([([0, 0], whole[:, :4]), ([0, 4], whole[:, 4:])], (10, 6)),
        "vector": sharded([([0], whole[:, 0])], (10,)),
        "ids": sharded([([0], whole[:6, 1].long()), ([6], whole[6:, 1].long())], (10,)),
    }


@pytest.mark.parametrize("nbytes", [1, 40, 1000])
def test_what_is_saved_in_blocks_of_any_size_is_loaded_exactly(tmp_path: Path, nbytes: int) -> None:
    with process_group("cpu"):
        dcp.save(layouts(), checkpoint_id=tmp_path, planner=RowBlockPlanner(nbytes))
        loaded = layouts(fill=-1)
        dcp.load(loaded, checkpoint_id=tmp_path)
        for name, expected in layouts().items():
            for found, shard in zip(loaded[name].local_shards(), expected.local_shards(), strict=True):
                assert torch.equal(found.tensor, shard.tensor), name


def test_no_block_is_larger_than_it_may_be_and_lists_of_ids_stay_whole(tmp_path: Path) -> None:
    with process_group("cpu"):
        dcp.save(layouts(), checkpoint_id=tmp_path, planner=RowBlockPlanner(48))
    saved = dcp.FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    for name in ("rows", "columns", "vector"):
        about = saved[name]
        assert max(chunk.sizes.numel() for chunk in about.chunks) * 4 <= 48
    assert [len(saved[name].chunks) for name in ("rows", "columns", "vector")] == [4 + 2, 4 + 2, 1]
    assert [chunk.sizes[0] for chunk in saved["ids"].chunks] == [6, 4]
