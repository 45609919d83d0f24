"""From sample columns to `SearchBatch`: ids to table rows, columns to views, texts to tokens, padding to constant shape."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec import KeyedJaggedTensor

from prectr_torchrec.config.columns import TextColumn
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.reads import Reads
from prectr_torchrec.config.tables import FeatureConfig, TableConfig, averaged_by_shares, bag_tables
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.column_kinds import Texts
from prectr_torchrec.data.columns import Column, declared_of, family_of, sample_columns
from prectr_torchrec.data.hashing import table_rows
from prectr_torchrec.data.item_vectors import ItemVectors
from prectr_torchrec.data.list_kinds import Bags, Ids
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.feature_columns import TITLE_TOKENS, check_features
from prectr_torchrec.data.reader.flat import Columns
from prectr_torchrec.data.reader.jagged_ids import JaggedIds
from prectr_torchrec.data.reader.packing import Block, Entry, Layout, entry_blocks, make_layout
from prectr_torchrec.data.reader.reads import SEQUENCES, batch_entries, text_columns
from prectr_torchrec.data.tokens import TextTokenizer, TokenCache


@dataclass
class PreparedRows:
    """Requests ready to be cut into batches.

    Attributes:
        blocks: for each block of the layout, its views that are made of columns: (views, rows, ...) or (views, candidates, ...).
        ids: feature -> table rows, (rows,) or (events of its family,).
        bags: feature -> table rows in lists, of each row or candidate.
        weights: feature -> what each of these counts, in lists alike.
        offsets: family -> (rows + 1,).
        texts: text -> its column, and rows of the token cache, (rows,), (candidates,) or (events,).
    """

    num_rows: int
    blocks: list[NDArray[Any]]
    ids: dict[str, NDArray[np.int64]]
    offsets: dict[str, NDArray[np.int64]]
    texts: dict[str, Texts]
    token_rows: dict[str, NDArray[np.int64]]
    bags: dict[str, Bags]
    weights: dict[str, Bags]


class MadeOf(NamedTuple):
    """What a batch is made of."""

    columns: list[Column]
    """Those of the samples that are read."""
    entries: list[list[Entry]]
    """The views, by block of the layout."""
    layout: Layout
    texts: dict[str, Column]
    """Text -> its column."""


BatchArrays = dict[str, NDArray[Any]]
"""Packed arrays by dtype, tokens by text, the arrays of `JaggedIds`, and `most_candidates`, one number."""
Piece = tuple[PreparedRows, int, int]
"""Rows `start..stop` of prepared rows, or candidates."""


class BatchBuilder:
    """Builds batches of `max_requests` requests and `max_candidates` candidates from sample columns.

    Args:
        data: of the configuration, as the next three.
        tokenizer: a folder in Hugging Face layout.
        reads: what the ranker reads besides the features.
        predicted: whether the samples have predicted levels.
        texts: whose tokens are kept, and as many words'.
        vectors: of items, for rows that do not bring them; None: all rows do.

    Raises:
        ValueError: a feature that is no column of ids, or token bags of titles in a table with sequences.
    """

    def __init__(
        self,
        data: DataConfig,
        text: TextConfig,
        tables: dict[str, TableConfig],
        features: dict[str, FeatureConfig],
        tokenizer: Path,
        max_requests: int,
        max_candidates: int,
        *,
        reads: Reads,
        predicted: bool = False,
        texts: int = 1_000_000,
        vectors: ItemVectors | None = None,
    ) -> None:
        self._vectors = vectors
        check_features(data, features)
        self._max_requests, self._max_candidates = max_requests, max_candidates
        tokens = TextTokenizer(tokenizer, texts)
        self._caches = {
            "query": TokenCache(tokens, text.query_tokens, texts),
            "title": TokenCache(tokens, text.title_tokens, texts),
            **{column.key: TokenCache(tokens, further.tokens, texts) for column, further in declared_of(data, TextColumn)},
        }
        of_candidates = [name for name in features if name.startswith("candidate_")]
        bags = [name for name in of_candidates if features[name].table in bag_tables(features)]
        self._columns = {name: feature.column or name for name, feature in features.items()}
        self._weights = {name: feature.weights for name, feature in features.items() if feature.weights}
        lists = {column.name for column in sample_columns(data) if isinstance(column.kind, Ids)}
        self._lists = {name for name, column in self._columns.items() if column in lists}
        self._averaged = {name for name in self._weights if features[name].pooling == "mean"}
        self._by_shares = averaged_by_shares(features)
        self._tables = {name: tables[feature.table].id_range for name, feature in features.items()}
        self._bag_features, self._request_features = bags, [name for name in features if name not in bags]
        self._families = {name: family_of(name) for name in self._request_features}
        self._token_rows: dict[str, NDArray[np.int64]] = {}
        for name in (name for name, column in self._columns.items() if column == TITLE_TOKENS):
            table = tables[features[name].table]
            rows = tokens.vocabulary_rows(table.id_range)  # -1: special
            managed = table.ids == "managed"
            self._token_rows[name] = np.where(rows < 0, rows, table_rows(rows, table.id_range)) if managed else rows
        self.limits = {"history": data.history_length, "peer": data.peer_length}
        """Events kept of a row by family, for `to_columns`."""
        reads = reads._replace(texts=reads.texts | ({"title"} if self._token_rows else set()))
        self._made_of = {known: self._plan(sample_columns(data), reads, known) for known in (False, True)}
        self._use(predicted)

    def sized(self, max_requests: int, max_candidates: int, *, predicted: bool) -> BatchBuilder:
        """The same for batches of another size, at no cost; the token caches are shared."""
        other = copy.copy(self)
        other._max_requests, other._max_candidates = max_requests, max_candidates
        other._use(predicted)
        return other

    def _use(self, predicted: bool) -> None:
        self.columns, self._entries, self._layout, self._texts = self._made_of[predicted]

    def _plan(self, columns: list[Column], reads: Reads, predicted: bool) -> MadeOf:
        """What batches are made of, by what the ranker reads, the features, and whether there are predicted levels."""
        named = {column.name: column for column in columns}
        looked_up = (*self._columns.values(), *self._weights.values())
        plain = list(dict.fromkeys(column for column in looked_up if column != TITLE_TOKENS))
        families = [f for f in SEQUENCES if f in reads.sequences or any(family_of(name) == f for name in plain)]
        entries = entry_blocks(batch_entries(columns, reads, families, predicted=predicted))
        texts = text_columns(columns, reads)
        index = {name: f"{column.name}_index" for name, column in texts.items()}
        made_of = {entry.column.name: entry.column for block in entries for entry in block if entry.column}
        beside = [(column.family, key) for column in made_of.values() for key in column.kind.beside]
        beside += [(column.family, "item_id") for column in made_of.values() if column.gathered]
        wanted = {*made_of, *(c.name for c in texts.values()), *plain, *(c.name for c in columns if (c.family, c.key) in beside)}
        read = [column for name, column in named.items() if name in wanted]
        return MadeOf(read, entries, make_layout(entries, self.limits, texts=index), texts)

    def prepare(self, columns: Columns) -> PreparedRows:
        """Everything that is done once for many batches."""
        flat: dict[str, dict[str, NDArray[Any]]] = {"request": {}, "candidate": {}, "history": {}, "peer": {}}
        for read in self.columns:
            if read.gathered and self._vectors is not None:
                flat[read.family][read.key] = self._vectors_of(read, columns, self._vectors)
            elif read.name in columns.values:
                flat[read.family][read.key] = columns.values[read.name]
        present = {
            family: np.arange(self.limits[family]) < np.diff(columns.offsets[family])[:, None]
            for family in SEQUENCES
            if family in columns.offsets
        }
        made: dict[str, dict[str, NDArray[Any]]] = {}
        blocks = []
        for entries, block in zip(self._entries, self._layout.blocks, strict=True):
            filled = [entry for entry in entries if entry.column]
            rows = int(columns.offsets["candidate"][-1]) if block.place.of_candidates else columns.num_rows
            values = np.zeros((len(filled), rows, *block.place.shape), block.place.dtype)
            for place, entry in zip(values, filled, strict=True):
                column = cast(Column, entry.column)
                if column.name not in made:
                    made[column.name] = column.kind.batched(column.key, flat[column.family])
                found = made[column.name][entry.key]
                if block.family in present:
                    place[present[block.family]] = found  # left-aligned
                else:
                    place[:] = found.reshape(place.shape)
            blocks.append(values)
        ids = {
            name: table_rows(columns.values[column], self._tables[name])
            for name, column in self._columns.items()
            if column in columns.values
        }
        bags = {
            name: replace(lists, values=table_rows(lists.values, self._tables[name]))
            for name, column in self._columns.items()
            if (lists := columns.bags.get(column)) is not None
        }
        weights = {
            name: columns.bags[column].shares() if name in self._averaged else columns.bags[column]
            for name, column in self._weights.items()
        }
        texts = {name: columns.texts[column.name] for name, column in self._texts.items()}
        prepared = PreparedRows(columns.num_rows, blocks, ids, columns.offsets, texts, {}, bags, weights)
        self._tokenise(prepared)
        return prepared

    @staticmethod
    def _vectors_of(column: Column, columns: Columns, vectors: ItemVectors) -> NDArray[np.float32]:
        """Those that the rows bring, and for the rest the known ones of their items."""
        ids, given = columns.values[f"{column.family}_item_id"], columns.values.get(column.name)
        return vectors.rows(column.key, ids) if given is None else vectors.filled(column.key, given, ids)

    def trim(self, carried: Sequence[PreparedRows]) -> None:
        """Keeps the token caches bounded; call it before `prepare` with the rows that are still to be built."""
        trimmed = [cache.trim() for cache in self._caches.values()]
        if any(trimmed):
            for rows in carried:
                self._tokenise(rows)

    def build(self, pieces: Sequence[Piece]) -> SearchBatch:
        """One padded batch of the pieces' rows, in order; no pieces make a batch of padding alone."""
        return self.to_batch(self.build_arrays(pieces))

    def to_batch(self, arrays: BatchArrays) -> SearchBatch:
        """Wraps `build_arrays`'s arrays, without a copy."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

        def jagged(name: str, keys: list[str], stride: int) -> KeyedJaggedTensor:
            values, lengths = tensors[f"{name}.values"], tensors[f"{name}.lengths"]
            weights = tensors.get(f"{name}.weights")
            # lengths by feature are summed here: on a GPU the host would have to wait for them
            return KeyedJaggedTensor(keys=keys, values=values, weights=weights, lengths=lengths, stride=stride).sync()

        return SearchBatch(
            jagged("request_features", self._request_features, self._max_requests),
            jagged("candidate_features", self._bag_features, self._max_candidates),
            {dtype: tensors[dtype] for dtype in ("int64", "float32")},
            {name: tensors[name] for name in self._texts},
            self._layout,
            int(arrays["most_candidates"][0]),
        )

    def build_arrays(self, pieces: Sequence[Piece]) -> BatchArrays:
        """`build` in numpy: that crosses processes many times faster than tensors do, one file descriptor each."""
        R, C = self._max_requests, self._max_candidates
        spans = [(rows, *rows.offsets["candidate"][[start, stop]].tolist()) for rows, start, stop in pieces]
        counts = _lengths(pieces, "candidate", R)
        num_requests, num_candidates = sum(stop - start for _, start, stop in pieces), int(counts.sum())
        assert num_requests <= R and num_candidates <= C, "the plan and the rows disagree"
        arrays: BatchArrays = {dtype: np.zeros(size, dtype) for dtype, size in self._layout.sizes(R, C).items()}
        views: dict[str, NDArray[Any]] = {}
        for number, (entries, block) in enumerate(zip(self._entries, self._layout.blocks, strict=True)):
            values = block.place.view(arrays, R, C)
            _fill(values, block, entries, number, spans if block.place.of_candidates else pieces)
            views |= zip((entry.name for entry in entries), values, strict=True)
        views["request_id"][num_requests:] = -1
        views["request_weight"][:num_requests] = 1
        views["candidate_weight"][:num_candidates] = 1
        views["candidate_request"][:] = R - 1
        views["candidate_request"][:num_candidates] = np.repeat(np.arange(R), counts)
        for family in SEQUENCES:
            if f"{family}_lengths" in views:
                views[f"{family}_lengths"][:] = _lengths(pieces, family, R)
        arrays["most_candidates"] = counts.max(keepdims=True)
        self._add_texts(arrays, views, pieces, spans)
        self._add_request_features(arrays, pieces)
        self._add_candidate_features(arrays, views, spans, num_candidates)
        return arrays

    def _add_texts(
        self, arrays: BatchArrays, views: Mapping[str, NDArray[Any]], pieces: Sequence[Piece], spans: Sequence[Piece]
    ) -> None:
        for name, column in self._texts.items():
            if column.family in SEQUENCES:
                of_rows: Sequence[Piece] = [
                    (rows, *rows.offsets[column.family][[start, stop]].tolist()) for rows, start, stop in pieces
                ]
            else:
                of_rows = spans if column.family == "candidate" else pieces
            tokens, index = _distinct([r.token_rows[name][a:b] for r, a, b in of_rows], self._caches[column.key])
            arrays[name], view = tokens, views[self._layout.texts[name]]
            if column.family in SEQUENCES:
                view[np.arange(view.shape[1]) < views[f"{column.family}_lengths"][:, None]] = index
            else:
                view[: len(index)] = index

    def _add_request_features(self, arrays: BatchArrays, pieces: Sequence[Piece]) -> None:
        R = self._max_requests
        found = self._jagged(self._request_features, R)
        by_family = {family: _lengths(pieces, family, R) for family in set(self._families.values())}
        for row, name in enumerate(self._request_features):
            family = self._families[name]
            if name in self._lists:
                found.add_bags(row, *self._bags_of(name, pieces))
                continue
            found.lengths[row] = by_family[family]
            for rows, start, stop in pieces:
                span = slice(start, stop) if family is None else slice(rows.offsets[family][start], rows.offsets[family][stop])
                found.add(rows.ids[name][span])
        arrays |= found.arrays("request_features")

    def _add_candidate_features(
        self, arrays: BatchArrays, views: Mapping[str, NDArray[Any]], spans: Sequence[Piece], num_candidates: int
    ) -> None:
        found = self._jagged(self._bag_features, self._max_candidates)
        for row, name in enumerate(self._bag_features):
            if name in self._lists:
                found.add_bags(row, *self._bags_of(name, spans))
            elif name in self._token_rows:
                ids = self._token_rows[name][
                    arrays["title"][views["candidate_title_index"][:num_candidates]]
                ]  # (candidates, tokens)
                found.lengths[row, :num_candidates] = (ids >= 0).sum(1)
                found.add(ids[ids >= 0])
            else:
                found.lengths[row, :num_candidates] = 1
                for rows, start, stop in spans:
                    found.add(rows.ids[name][start:stop])
        arrays |= found.arrays("candidate_features")

    def _jagged(self, features: list[str], stride: int) -> JaggedIds:
        averaged = [row for row, name in enumerate(features) if name in self._by_shares]
        return JaggedIds(len(features), stride, weighted=not self._weights.keys().isdisjoint(features), averaged=averaged)

    def _bags_of(self, name: str, parts: Sequence[Piece]) -> tuple[list[Bags], list[Bags] | None]:
        """Lists of a feature, and of their weights where it has such, of rows or candidates."""
        weights = [rows.weights[name].slice(start, stop) for rows, start, stop in parts] if name in self._weights else None
        return [rows.bags[name].slice(start, stop) for rows, start, stop in parts], weights

    def _tokenise(self, rows: PreparedRows) -> None:
        for name, texts in rows.texts.items():
            rows.token_rows[name] = self._caches[self._texts[name].key].rows(texts.distinct)[texts.index]


def _fill(values: NDArray[Any], block: Block, entries: Sequence[Entry], number: int, parts: Sequence[Piece]) -> None:
    """Fills a block, the one of a number, with the rows of its columns; what is left is padding."""
    end = 0
    for rows, start, stop in parts:
        begin, end = end, end + stop - start
        made = rows.blocks[number]
        values[: len(made), begin:end] = made[:, start:stop]
    for padding, entry in zip(values, entries, strict=True):
        if entry.view.fill and block.family not in SEQUENCES:
            padding[end:] = entry.view.fill


def _lengths(pieces: Sequence[Piece], family: str | None, size: int) -> NDArray[np.int64]:
    """(size,) events of each row, 1 where there is no family; padded with 0."""
    lengths = np.zeros(size, dtype=np.int64)
    end = 0
    for rows, start, stop in pieces:
        begin, end = end, end + stop - start
        lengths[begin:end] = 1 if family is None else np.diff(rows.offsets[family][start : stop + 1])
    return lengths


def _distinct(parts: list[NDArray[np.int64]], cache: TokenCache) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of the distinct texts, and an index into them for each text."""
    if not any(map(len, parts)):  # an encoder never sees no text at all
        return cache.distinct(cache.rows([""]))[0], np.zeros(0, dtype=np.int64)
    return cache.distinct(np.concatenate(parts))
