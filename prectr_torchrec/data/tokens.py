"""Tokenises each distinct text once, and each distinct word of the texts once where the tokenizer allows it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from prectr_torchrec.runs.workspace import file_digest

_SPACE, _PUNCTUATION, _WORD = 0, 1, 2
_KIND = np.full(256, _WORD, dtype=np.uint8)
"""Of a byte of UTF-8. ASCII punctuation is a word by itself to BERT; the brackets of a literal [MASK] stay with it."""
_KIND[ord(" ")] = _SPACE
_KIND[list(b"!\"#$%&'()*+,-./:;<=>?@\\^_`{|}~")] = _PUNCTUATION
_LOWER = np.frombuffer(bytes(range(256)).lower(), dtype=np.uint8)

_WORDS_A_TEXT = 512
_CHARACTERS_A_TEXT = 256
"""Held of texts, and of words, at most, times as many as these may be."""


class TokenCache:
    """A growing matrix of token ids, one row a distinct text.

    Args:
        tokenizer: may be shared between caches.
        num_tokens: W, tokens kept of a text, special ones included.
        capacity: texts held; `trim` forgets all when there are more, or when they are too long for memory.
    """

    def __init__(self, tokenizer: TextTokenizer, num_tokens: int, capacity: int = 1_000_000) -> None:
        self.num_tokens = num_tokens
        self._tokenizer = tokenizer
        self._capacity = capacity
        self._rows: dict[str, int] = {}
        self._characters = 0
        self._matrix = np.zeros((1024, num_tokens), dtype=np.int32)
        self._first = np.zeros(len(self._matrix), dtype=np.int64)  # scratch of `distinct`

    def trim(self) -> bool:
        """Forgets all texts if there are more than `capacity`; true if it did, and rows given before are void."""
        if len(self._rows) <= self._capacity and self._characters <= _CHARACTERS_A_TEXT * self._capacity:
            return False
        self._rows.clear()
        self._characters = 0
        return True

    def rows(self, texts: list[str]) -> NDArray[np.int64]:
        """(len(texts),) rows for `distinct`, of texts that differ from each other; those not seen before are tokenised."""
        rows = np.fromiter(map(self._rows.get, texts, repeat(-1)), dtype=np.int64, count=len(texts))
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            rows[missing] = np.arange(len(self._rows), len(self._rows) + len(missing))
            self._add([texts[i] for i in missing.tolist()])
        return rows

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

    def _add(self, texts: list[str]) -> None:
        start, stop = len(self._rows), len(self._rows) + len(texts)
        if stop > len(self._matrix):
            size = max(stop, 2 * len(self._matrix))
            grown = np.zeros((size, self._matrix.shape[1]), dtype=np.int32)
            grown[:start] = self._matrix[:start]
            self._matrix, self._first = grown, np.zeros(size, dtype=np.int64)
        self._matrix[start:stop] = self._tokenizer.encode(texts, self.num_tokens)
        self._rows.update(zip(texts, range(start, stop), strict=True))
        self._characters += sum(map(len, texts))


class TextTokenizer:
    """A tokenizer in Hugging Face layout that gives matrices.

    Where the words between spaces are tokenised independently of each other (BERT's WordPiece, what `prepare` trains), each
    distinct word goes through the tokenizer once and texts are put together from words, several times faster.

    Args:
        folder: holds `tokenizer.json`.
        capacity: words remembered; all are forgotten when there are more.

    Raises:
        ValueError: there is no tokenizer in the folder.
    """

    def __init__(self, folder: Path, capacity: int = 1_000_000) -> None:
        self._tokenizer = open_tokenizer(folder)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._capacity = capacity
        self._word_wise = _words_are_independent(self._tokenizer)
        self._lowercase = self._word_wise and _lowers_case(self._tokenizer)
        self._continues = np.zeros(vocabulary_size(self._tokenizer.get_vocab()), dtype=bool)
        self._continues[[i for token, i in self._tokenizer.get_vocab().items() if token.startswith("##")]] = True
        self._word_rows: dict[str, int] = {}
        self._word_characters = 0
        self._word_offsets = np.zeros(1, dtype=np.int64)
        self._word_ids = np.zeros(0, dtype=np.int32)

    def encode(self, texts: list[str], num_tokens: int) -> NDArray[np.int32]:
        """(len(texts), num_tokens) token ids with the special ones, truncated on the right, 0: padding."""
        if not self._word_wise:
            self._tokenizer.enable_truncation(num_tokens)
            return _to_matrix(*_ragged(self._tokenizer, texts, True), num_tokens)
        words, words_before = self._split(texts)
        occurrences = words.dictionary_encode()
        rows = self._rows_of_words(occurrences.dictionary.to_pylist())[occurrences.indices.to_numpy()]
        starts, ends = self._word_offsets[rows], self._word_offsets[rows + 1]
        tokens_before = np.concatenate([[0], np.cumsum(ends - starts)])
        index = np.repeat(ends - tokens_before[1:], ends - starts)
        index += np.arange(len(index))
        example = self._tokenizer.encode("a")
        content = np.flatnonzero(np.array(example.special_tokens_mask) == 0)
        before, after = example.ids[: content[0]], example.ids[content[-1] + 1 :]
        return _to_matrix(self._word_ids[index], tokens_before[words_before], num_tokens, before, after)

    def vocabulary_rows(self, num_embeddings: int) -> NDArray[np.int64]:
        """(vocabulary,) row `token % num_embeddings` of each token, -1 for padding and special tokens."""
        rows = np.arange(vocabulary_size(self._tokenizer.get_vocab())) % num_embeddings
        special = [i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special]
        rows[[0, *special]] = -1
        return rows

    def _split(self, texts: list[str]) -> tuple[pa.Array, NDArray[np.int64]]:
        """Words, marks and runs of spaces of all texts, and (len(texts) + 1,) how many of these stand before each text."""
        array = pa.array(texts, pa.large_string())
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64)[: len(texts) + 1]
        characters = np.frombuffer(data or b"", dtype=np.uint8)[: ends[-1]]
        kind = _KIND[characters]
        is_start = np.ones(len(kind) + 1, dtype=bool)
        is_start[1:-1] = (kind[1:] != kind[:-1]) | (kind[1:] == _PUNCTUATION)
        is_start[ends] = True
        starts = np.flatnonzero(is_start)
        text = characters
        if self._lowercase:
            text = _LOWER[characters]
            for word in np.unique(starts.searchsorted(np.flatnonzero(characters == ord("[")), side="right")).tolist():
                text[starts[word - 1] : starts[word]] = characters[starts[word - 1] : starts[word]]  # may be a literal [MASK]
        words = pa.LargeStringArray.from_buffers(len(starts) - 1, pa.py_buffer(starts), pa.py_buffer(text))
        return words, starts.searchsorted(ends)

    def _rows_of_words(self, words: list[str]) -> NDArray[np.int64]:
        if len(self._word_rows) > self._capacity or self._word_characters > _CHARACTERS_A_TEXT * self._capacity:
            self._word_rows.clear()
            self._word_characters = 0
            self._word_offsets, self._word_ids = self._word_offsets[:1], self._word_ids[:0]
        rows = np.fromiter(map(self._word_rows.get, words, repeat(-1)), dtype=np.int64, count=len(words))
        missing = np.flatnonzero(rows < 0).tolist()
        new, ids, offsets = self._encode_words([words[i] for i in missing])
        self._word_rows.update(zip(new, range(len(self._word_rows), len(self._word_rows) + len(new)), strict=True))
        self._word_characters += sum(map(len, new))
        self._word_offsets = np.concatenate([self._word_offsets, offsets[1:] + len(self._word_ids)])
        self._word_ids = np.concatenate([self._word_ids, ids])
        rows[missing] = [self._word_rows[words[i]] for i in missing]
        return rows

    def _encode_words(self, words: list[str]) -> tuple[list[str], NDArray[np.int32], NDArray[np.int64]]:
        """The words in another order, their token ids, and (len(words) + 1,) offsets.

        ASCII words are neither split nor dropped, so that hundreds of them go through the tokenizer as one text.
        """
        plain = [word for word in words if word.isascii() and word.isalnum()]
        others = [word for word in words if not (word.isascii() and word.isalnum())]
        texts = [" ".join(plain[start : start + _WORDS_A_TEXT]) for start in range(0, len(plain), _WORDS_A_TEXT)]
        ids, _ = _ragged(self._tokenizer, texts, False)
        starts = np.flatnonzero(~self._continues[ids])  # a word's first piece is the one without the prefix
        assert len(starts) == len(plain)
        other_ids, other_offsets = _ragged(self._tokenizer, others, False)
        return [*plain, *others], np.concatenate([ids, other_ids]), np.concatenate([starts, other_offsets + len(ids)])


def vocabulary_size(vocabulary: Mapping[str, int]) -> int:
    """Rows of what has one for each token, by its id: ids may have gaps."""
    return max(vocabulary.values()) + 1


def tokenizer_digest(folder: Path) -> str:
    """A name for a tokenizer's content, wherever it lies.

    Raises:
        ValueError: there is no tokenizer in the folder.
    """
    return file_digest(_tokenizer_file(folder))


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder in Hugging Face layout.

    Raises:
        ValueError: there is none, or it is damaged; names the file.
    """
    path = _tokenizer_file(folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own for them
        raise ValueError(f"{path}: no tokenizer: {error}") from None
    if not tokenizer.get_vocab_size():
        raise ValueError(f"{path}: a tokenizer without a vocabulary")
    return tokenizer


def _tokenizer_file(folder: Path) -> Path:
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no tokenizer.json here; a tokenizer in Hugging Face layout is needed")
    return path


def _words_are_independent(tokenizer: Tokenizer) -> bool:
    parts = json.loads(tokenizer.to_str())
    kinds = {part: (parts[part] or {}).get("type") for part in ("model", "pre_tokenizer", "normalizer", "post_processor")}
    return (
        kinds["model"] == "WordPiece"
        and parts["model"].get("continuing_subword_prefix", "##") == "##"
        and kinds["pre_tokenizer"] == "BertPreTokenizer"
        and kinds["normalizer"] in (None, "BertNormalizer", "Lowercase")
        and kinds["post_processor"] in (None, "TemplateProcessing", "BertProcessing")
        # an added word without brackets would be cut out of longer words
        and all(re.fullmatch(r"\[\w+\]", token["content"]) for token in parts["added_tokens"])
    )


def _lowers_case(tokenizer: Tokenizer) -> bool:
    """Whether "A" and "a" are the same to it."""
    return bool(tokenizer.normalizer) and tokenizer.normalizer.normalize_str("A") == "a"


def _ragged(tokenizer: Tokenizer, texts: list[str], special: bool) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Token ids of all texts, and (len(texts) + 1,) offsets."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=special)]
    offsets = np.cumsum([0, *map(len, ids)])
    return np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(offsets[-1])), offsets


def _to_matrix(
    ids: NDArray[np.int32],
    offsets: NDArray[np.int64],
    num_tokens: int,
    before: list[int] | None = None,
    after: list[int] | None = None,
) -> NDArray[np.int32]:
    """Pads and truncates; `before` and `after` are the special tokens around each text."""
    before, after = before or [], after or []
    lengths = np.diff(offsets)
    kept = np.minimum(lengths, num_tokens - len(before) - len(after))
    columns = np.arange(num_tokens) - len(before)
    places = (columns >= 0) & (columns < kept[:, None])  # (texts, W)
    matrix = np.zeros(places.shape, dtype=np.int32)
    matrix[places] = ids[np.arange(len(ids)) - np.repeat(offsets[:-1], lengths) < np.repeat(kept, lengths)]
    matrix[:, : len(before)] = before
    for place, token in enumerate(after):
        matrix[np.arange(len(matrix)), len(before) + kept + place] = token
    return matrix
