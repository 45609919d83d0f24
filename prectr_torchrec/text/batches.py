"""Batches of texts of like length, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Rows in batches of at most `max_tokens` tokens, padding included, the longest first; a longer row goes alone.

    The longest come first so that a batch that does not fit into memory shows at once. A batch that is at least half full ends
    where the length changes: without padding there is no mask, and attention takes its fastest kernel.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    ordered = np.asarray(lengths)[order]
    changes = np.flatnonzero(np.diff(ordered)) + 1
    start = 0
    while start < len(order):
        size = max(1, max_tokens // max(1, int(ordered[start])))
        ends = changes[np.searchsorted(changes, start + (size + 1) // 2) : np.searchsorted(changes, start + size)]
        stop = int(ends[-1]) if len(ends) else start + size
        yield order[start:stop]
        start = stop


def shuffled_batches(lengths: Sequence[int], batch_size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """One epoch of training batches in random order: rows are shuffled, and sorted by length within runs of many batches."""
    pool = 50 * batch_size
    order, length = rng.permutation(len(lengths)), np.asarray(lengths)
    runs = (order[start : start + pool] for start in range(0, len(order), pool))
    batches = [
        run[start : start + batch_size]
        for run in (run[np.argsort(length[run], kind="stable")] for run in runs)
        for start in range(0, len(run), batch_size)
    ]
    return [batches[index] for index in rng.permutation(len(batches))]


def to_device(tensor: Tensor, device: torch.device | None) -> Tensor:
    """The tensor on a device; a copy to a GPU is not waited for."""
    on_gpu = device is not None and device.type == "cuda"
    return tensor.pin_memory().to(device, non_blocking=True) if on_gpu else tensor.to(device)


def pad_batch(inputs: dict[str, list[list[int]]], rows: NDArray[np.int64], pad_token_id: int, *, left: bool) -> dict[str, Tensor]:
    """The chosen rows of tokenised texts, padded to the longest of them; attention masks and the like with zeros.

    Returns:
        Name -> (len(rows), longest) int64.
    """
    lengths = np.array([len(inputs["input_ids"][row]) for row in rows])
    place = np.arange(lengths.max())
    taken = place >= lengths.max() - lengths[:, None] if left else place < lengths[:, None]  # (len(rows), longest)
    batch: dict[str, Tensor] = {}
    for name, values in inputs.items():
        padded = np.full(taken.shape, pad_token_id if name == "input_ids" else 0)
        padded[taken] = np.fromiter(chain.from_iterable(values[row] for row in rows), np.int64, lengths.sum())
        batch[name] = torch.from_numpy(padded)
    return batch
