"""Batches of texts of like length, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Rows in batches of at most `max_tokens` tokens, padding included, the longest first; a longer row goes alone.

    The longest come first so that a batch that does not fit into memory shows at once.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, max_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


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


def pad_batch(inputs: dict[str, list[list[int]]], rows: NDArray[np.int64], pad_token_id: int, *, left: bool) -> dict[str, Tensor]:
    """The chosen rows of tokenised texts, padded to the longest of them; attention masks and the like with zeros.

    Returns:
        Name -> (len(rows), longest) int64.
    """
    longest = max(len(inputs["input_ids"][row]) for row in rows)
    batch: dict[str, Tensor] = {}
    for name, values in inputs.items():
        padded = torch.full((len(rows), longest), pad_token_id if name == "input_ids" else 0)
        for n, row in enumerate(rows):
            length = len(values[row])
            padded[n, longest - length if left else 0 :][:length] = torch.tensor(values[row])
        batch[name] = padded
    return batch
