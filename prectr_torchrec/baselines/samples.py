"""What the baselines read: prepared samples as NumPy columns, a row group at a time, and how the texts of a pair match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from prectr_torchrec.config.base import Section
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.run import validate_section
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.columns import sample_columns
from prectr_torchrec.data.item_vectors import ITEM_VECTORS, ItemVectors
from prectr_torchrec.data.parquet_files import open_parquet, readable
from prectr_torchrec.data.reader.epoch_plan import list_row_groups
from prectr_torchrec.data.reader.flat import Columns, Texts, to_columns
from prectr_torchrec.data.schema import MANIFEST, TOKENIZER, load_manifest, read_manifest, sample_schema
from prectr_torchrec.data.tokens import TextTokenizer, TokenCache
from prectr_torchrec.text.build import build_match

LABELLED = ("train", "validation", "test")
"""Splits whose candidates were shown."""
_PAIRS = 2**16
"""Pairs matched together."""


class BaselineConfig(Section):
    """What both kinds of baseline have; `--set` changes it."""

    seed: int = 1
    stemmer: str | None = "english"
    """Snowball language of the match features; null: words meet only in the same form."""


@dataclass(frozen=True)
class Samples:
    """A prepared folder.

    Attributes:
        folder: of `prectr prepare`.
        data: the settings that it was prepared with.
        max_candidates: of a request.
        examination: of positions 1, 2, ...
    """

    folder: Path
    data: DataConfig
    max_candidates: int
    examination: tuple[float, ...]

    @classmethod
    def open(cls, folder: Path, data: DataConfig | None = None) -> Samples:
        """Opens a prepared folder.

        Args:
            data: settings that it has to agree with; None: its own.

        Raises:
            ValueError: it is not wholly prepared, or was prepared by another release or with other settings, or
                leaves requests out.
        """
        own = validate_section(DataConfig, load_manifest(folder)["settings"]["data"], f"{folder}/{MANIFEST}")
        manifest = read_manifest(folder, data or own)
        if own.keep_unclicked < 1:
            raise ValueError(f"{folder}: samples of data.keep_unclicked {own.keep_unclicked}; baselines fit on all requests")
        return cls(folder, data or own, int(manifest["max_candidates"]), tuple(manifest["examination"]))

    def has(self, split: str) -> bool:
        """Whether the split is there and has requests."""
        return any(pq.read_metadata(path).num_rows for path in (self.folder / split).glob("*.parquet"))

    def columns(self, split: str, names: Sequence[str]) -> Iterator[Columns]:
        """The row groups of a split in the order of the files, one at a time; vectors of items need `candidate_item_id`.

        Raises:
            ValueError: there is no such split, or a file cannot be used.
        """
        named = {column.name: column for column in sample_columns(self.data)}
        gathered = [named[name] for name in names if named[name].gathered]
        columns = [named[name] for name in names if not named[name].gathered]
        vectors = ItemVectors.of(self.data, self.folder / ITEM_VECTORS) if gathered else None
        limits = {"history": self.data.history_length, "peer": self.data.peer_length}
        for group in list_row_groups(self.folder, split, sample_schema(self.data), self.max_candidates):
            source = f"{group.path}, row group {group.index}"
            with readable(source), open_parquet(group.path) as file:
                table = file.read_row_group(group.index, columns=[column.name for column in columns], use_threads=False)
            found = to_columns([table], [source], columns, limits=limits)
            for column in gathered:
                assert vectors is not None
                found.values[column.name] = vectors.rows(column.key, found.values["candidate_item_id"])
            yield found


class TextPairs:
    """Tokens of queries and titles, and the match features of pairs of them.

    Args:
        tokenizer: folder in Hugging Face layout with document frequencies, as `prectr prepare` writes it.
        stemmer: a Snowball language, or None.
    """

    def __init__(self, tokenizer: Path, stemmer: str | None) -> None:
        text = TextConfig()
        tokens = TextTokenizer(tokenizer)
        self._queries, self._titles = TokenCache(tokens, text.query_tokens), TokenCache(tokens, text.title_tokens)
        self.match = build_match(tokenizer, stemmer)

    def title_stems(self, titles: list[str]) -> NDArray[np.int64]:
        """(titles, W) the stem of each token of some distinct titles, 0 where there is no word."""
        tokens = torch.from_numpy(_distinct_tokens(self._titles, titles))
        return np.asarray((self.match.stem[tokens] * self.match.is_word[tokens]).numpy())

    def features(self, query: Texts, title: Texts) -> NDArray[np.float32]:
        """(n, 24) match features of the pairs of each `query` and `title`; each distinct pair is matched once."""
        pair = query.index.astype(np.int64) * len(title.distinct) + title.index
        distinct, place = np.unique(pair, return_inverse=True)
        queries = torch.from_numpy(_distinct_tokens(self._queries, query.distinct))
        titles = torch.from_numpy(_distinct_tokens(self._titles, title.distinct))
        parts = [np.zeros((0, self.match.num_features), np.float32)]
        for start in range(0, len(distinct), _PAIRS):
            q, t = (torch.from_numpy(i) for i in np.divmod(distinct[start : start + _PAIRS], len(title.distinct)))
            parts.append(self.match(queries[q], titles[t]).numpy())
        return np.concatenate(parts)[place]


def per_candidate(columns: Columns, text: str) -> Texts:
    """A text of the requests, given to each of their candidates."""
    return replace(columns.texts[text], index=columns.texts[text].index[candidate_requests(columns)])


def candidate_requests(columns: Columns) -> NDArray[np.int64]:
    """(candidates,) the request row of each candidate."""
    return np.repeat(np.arange(columns.num_rows), np.diff(columns.offsets["candidate"]))


def _distinct_tokens(cache: TokenCache, texts: list[str]) -> NDArray[np.int64]:
    cache.trim()
    rows = cache.rows(texts)
    tokens, index = cache.distinct(rows)
    return tokens[index]


def open_texts(samples: Samples, config: BaselineConfig) -> TextPairs:
    """The texts of a prepared folder, by its own tokenizer."""
    return TextPairs(samples.folder / TOKENIZER, config.stemmer)
