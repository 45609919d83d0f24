"""Tokenises each distinct text once."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


class TokenCache:
    """A growing matrix of token ids, one row a distinct text.

    Args:
        folder: a tokenizer in Hugging Face layout (`tokenizer.json`).
        num_tokens: W, tokens kept of a text, special ones included.
        capacity: texts held; `trim` forgets all when there are more.

    Raises:
        ValueError: there is no tokenizer in the folder.
    """

    def __init__(self, folder: Path, num_tokens: int, capacity: int = 1_000_000) -> None:
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{folder}: no tokenizer.json here; a tokenizer in Hugging Face layout is needed")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(num_tokens)
        self._tokenizer.no_padding()
        self._capacity = capacity
        self._rows: dict[str, int] = {}
        self._matrix = np.zeros((1024, num_tokens), dtype=np.int32)
        self._first = np.zeros(len(self._matrix), dtype=np.int64)  # scratch of `distinct`

    def __len__(self) -> int:
        return len(self._rows)

    def trim(self) -> bool:
        """Forgets all texts if there are more than `capacity`; true if it did, and rows given before are void."""
        if len(self._rows) <= self._capacity:
            return False
        self._rows.clear()
        return True

    def rows(self, texts: list[str]) -> NDArray[np.int64]:
        """(len(texts),) rows of `tokens`; texts not seen before are tokenised."""
        known = self._rows
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            first, count = len(known), len(known) + len(new)
            if count > len(self._matrix):
                grown = np.zeros((max(count, 2 * len(self._matrix)), self._matrix.shape[1]), dtype=np.int32)
                grown[:first] = self._matrix[:first]
                self._matrix, self._first = grown, np.zeros(len(grown), dtype=np.int64)
            self._matrix[first:count] = self._tokens_of(new)
            known.update(zip(new, range(first, count), strict=True))
        return np.fromiter(map(known.__getitem__, texts), dtype=np.int64, count=len(texts))

    def distinct(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of the distinct rows, in order of first appearance (which no state of the cache changes).

        Returns:
            (N, W) int64 token ids, 0: padding; (len(rows),) indices into them.
        """
        places = np.arange(len(rows))
        self._first[rows[::-1]] = places[::-1]  # of equal rows the last write stays: the first place
        first = self._first[rows]
        is_first = first == places
        index = (np.cumsum(is_first) - 1)[first]
        return self._matrix[rows[is_first]].astype(np.int64), index

    def vocabulary_rows(self, num_embeddings: int) -> NDArray[np.int64]:
        """(vocabulary,) row `token % num_embeddings` of each token, -1 for padding and special tokens."""
        rows = np.arange(self._tokenizer.get_vocab_size()) % num_embeddings
        special = [i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special]
        rows[[0, *special]] = -1
        return rows

    def _tokens_of(self, texts: list[str]) -> NDArray[np.int32]:
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        tokens = np.zeros((len(ids), self._matrix.shape[1]), dtype=np.int32)
        tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
        return tokens
