"""Pairs of query and title in memory, tokenised once, with what grades and teachers say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from prectr_torchrec.data.teacher_scores import probabilities
from prectr_torchrec.data.tokens import TextTokenizer, TokenCache
from prectr_torchrec.text.batches import to_device

KEYS = ["query_id", "item_id"]


class PairBatch(NamedTuple):
    """B pairs of Q distinct queries and T distinct titles."""

    query_tokens: Tensor
    """(Q, W_q) int64, 0: padding."""
    title_tokens: Tensor
    """(T, W_t) int64."""
    query_index: Tensor
    """(B,) int64."""
    title_index: Tensor
    """(B,) int64."""


class PairData:
    """The pairs of a file, each distinct text tokenised once.

    Args:
        pairs: what `PairsFile.read` gives.
        tokenizer: its folder.
        query_tokens, title_tokens: W_q and W_t, tokens kept of a text.
        device: where batches go.

    Attributes:
        query_id: (n,) int64.
        grade: (n,) float32, NaN where there is none.
        split: (n,) of `train`, `validation`, `test`.
    """

    def __init__(
        self, pairs: pa.Table, tokenizer: Path, query_tokens: int, title_tokens: int, device: torch.device | None = None
    ) -> None:
        texts = TextTokenizer(tokenizer)
        self._device = device
        self._query_row, self._queries = _tokenise(pairs["query"], TokenCache(texts, query_tokens))
        self._title_row, self._titles = _tokenise(pairs["title"], TokenCache(texts, title_tokens))
        self.query_id = pairs["query_id"].to_numpy()
        self.grade = pairs["relevance"].to_numpy().astype(np.float32)
        self.split = np.array(pairs["split"].to_pylist(), dtype=object)

    def __len__(self) -> int:
        return len(self.query_id)

    def batch(self, rows: NDArray[np.int64]) -> PairBatch:
        """Args: rows: (B,) of the file."""
        queries, query_index = np.unique(self._query_row[rows], return_inverse=True)
        titles, title_index = np.unique(self._title_row[rows], return_inverse=True)
        parts = (self._queries[queries], self._titles[titles], query_index, title_index)
        return PairBatch(*(to_device(torch.from_numpy(part.astype(np.int64)), self._device) for part in parts))


def teacher_targets(pairs: pa.Table, scores: pa.Table) -> tuple[NDArray[np.float32], NDArray[Any] | None]:
    """What the teacher says of each pair.

    Args:
        pairs: n rows.
        scores: what `read_teacher_scores` gives.

    Returns:
        (n, K) level probabilities, NaN where there are none, and (n, D) half precision hidden states, or None.
    """
    row = teacher_rows(pairs, scores)
    targets = probabilities(scores)[row]
    targets[row < 0] = np.nan
    if "hidden" not in scores.column_names:
        return targets, None
    hidden = scores["hidden"].combine_chunks()
    return targets, hidden.flatten().to_numpy(zero_copy_only=False).reshape(len(hidden), -1)[row]


def teacher_rows(pairs: pa.Table, scores: pa.Table) -> NDArray[np.int64]:
    """(n,) the row of `scores` for each pair, -1 without one."""
    left = pairs.select(KEYS).append_column("pair", pa.array(np.arange(len(pairs))))
    right = scores.select(KEYS).append_column("score", pa.array(np.arange(len(scores))))
    met = left.join(right, keys=KEYS, join_type="inner")
    row = np.full(len(pairs), -1, dtype=np.int64)
    row[met["pair"].to_numpy()] = met["score"].to_numpy()
    return row


def _tokenise(column: pa.ChunkedArray, cache: TokenCache) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Each row's text among the distinct ones (n,), and their tokens (N, W)."""
    encoded = column.combine_chunks().dictionary_encode()
    tokens, _ = cache.distinct(cache.rows(encoded.dictionary.to_pylist()))
    return encoded.indices.to_numpy().astype(np.int64), tokens.astype(np.int32)
