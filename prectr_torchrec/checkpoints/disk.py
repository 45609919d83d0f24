"""A checkpoint that cannot be written: what it needs, what there is, and that the earlier ones stand."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException

from prectr_torchrec.runs.workspace import remove
from prectr_torchrec.system.failures import OutputError


class SaveError(OutputError):
    """A checkpoint could not be written; those before it are as they were."""


@contextlib.contextmanager
def explained_save(folder: Path, last: str | None, size: Callable[[], int]) -> Iterator[None]:
    """Turns what a full or failing disk says on any rank into one message, and removes what was half written.

    Args:
        folder: where the checkpoint goes.
        last: the checkpoint to fall back to; None: there is none yet.
        size: bytes of what is saved, asked for when that failed.

    Raises:
        SaveError: the checkpoint was not written.
    """
    try:
        yield
    except (CheckpointException, OSError) as error:
        reasons = _reasons(error)
        if dist.get_rank() == 0:
            for half in folder.glob(".*.saving"):
                remove(half)
        kept = f"the one before, {last}, stands" if last else "there is none before it"
        needed = max(size(), _on_disk(folder / last) if last else 0)
        raise SaveError(
            f"{folder}: no checkpoint could be written ({'; '.join(reasons)}): it needs {needed:,} bytes, "
            f"{shutil.disk_usage(folder).free:,} are free; {kept}. Make room and start the same command again"
        ) from None


def num_bytes(value: Any) -> int:
    """Bytes of a tensor, or of all in nested dictionaries, over all ranks."""
    if isinstance(value, dict):
        return sum(map(num_bytes, value.values()))
    if isinstance(value, ShardedTensor):
        return math.prod(value.size()) * value.dtype.itemsize
    return value.nbytes if isinstance(value, Tensor) else 0


def _on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _reasons(error: CheckpointException | OSError) -> list[str]:
    if isinstance(error, OSError):
        return [f"rank {dist.get_rank()}: {error}"]
    return [f"rank {rank}: {failure}" for rank, (failure, _) in sorted(error.failures.items())]
