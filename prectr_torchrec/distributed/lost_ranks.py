"""Which ranks are gone when a collective operation fails."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

_ANSWER = timedelta(seconds=3)
_GLOO = ("gloo", "Gloo", "Application timeout caused pair closure")
"""Gloo's errors are plain RuntimeErrors."""


class LostRanks(RuntimeError):
    """A collective operation failed because some ranks are gone or hang."""


@contextlib.contextmanager
def lost_ranks_named(timeout: timedelta) -> Iterator[None]:
    """Has the ranks whose collective operation failed call the roll: who does not answer is who they waited for.

    Args:
        timeout: of the process group, to be named.

    Raises:
        LostRanks: in place of an error of the backend.
    """
    since = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        if not (isinstance(error, dist.DistError) or any(mark in reason for mark in _GLOO)):
            raise
        raise LostRanks(
            f"{_find_missing_ranks()} ({time.monotonic() - since:.0f} s into the job; a rank waits at most "
            f"{timeout.total_seconds():g} s for the others, train.timeout): {reason}"
        ) from None


def _find_missing_ranks() -> str:
    store, here = dist.distributed_c10d._get_default_store(), dist.get_rank()
    try:
        store.set(f"roll call/{here}", "here")
        end = time.monotonic() + _ANSWER.total_seconds()
        missing = [rank for rank in range(dist.get_world_size()) if not _answers(store, rank, end)]
    except RuntimeError:  # the store's host is among the lost
        return f"rank {here} reaches neither the other ranks nor the store that they meet at"
    if not missing:
        return f"rank {here}: a collective operation failed; all ranks answer by now"
    return f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))} did not answer"


def _answers(store: dist.Store, rank: int, end: float) -> bool:
    while not store.check([f"roll call/{rank}"]):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
