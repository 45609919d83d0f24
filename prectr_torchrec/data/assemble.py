"""From sample columns to `SearchBatch`: ids to table rows, grades to levels, texts to tokens, padding to constant shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torchrec import KeyedJaggedTensor

from prectr_torchrec.config import RunConfig, nearest
from prectr_torchrec.data.batch import SearchBatch
from prectr_torchrec.data.columns import UNLABELLED, Columns, Texts, family_of
from prectr_torchrec.data.hashing import table_rows
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.data.schema import sample_schema
from prectr_torchrec.data.tokens import TextTokenizer, TokenCache

TITLE_TOKENS = "candidate_title_tokens"
"""The feature that is no sample column: a bag of the title's token ids, without the special ones."""
_NO_IDS = ("request_id", "timestamp", "history_age", "peer_age")
"""64-bit sample columns that make no features."""

_R, _C = "requests", "candidates"
_BLOCKS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    (_R, np.int64, ("request_id", "user_id", "history_lengths")),
    (_R, np.float32, ("user_events", "user_query_events", "query_events")),
    (_R, np.float32, ("user_shown", "user_clicked", "query_shown", "query_clicked")),
    (_R, np.int64, ("history_level", "history_click", "history_position")),
    (_R, np.float32, ("history_age",)),
    (_C, np.int64, ("item_id", "position", "level")),
    (_C, np.float32, ("click", "click_weight", "relevance", "item_shown", "item_clicked")),
)
"""Fields of one dtype and shape are stored, sliced and padded together."""
_COLUMNS = ["request_id", "user_id", *_BLOCKS[1][2], *_BLOCKS[2][2], "query", "candidate_title",
            *(f"history_{name}" for name in ("relevance", "click", "position", "age")),
            *(f"candidate_{name}" for name in ("item_id", "position", "click", "relevance", "shown", "clicked"))]  # fmt: skip
"""The sample columns of the fields."""


@dataclass
class PreparedRows:
    """Requests ready to be cut into batches.

    Attributes:
        blocks: for each of `_BLOCKS`, (fields, rows, ...) or (fields, candidates).
        ids: feature -> table rows, (rows,) or (events of its family,).
        offsets: family -> (rows + 1,).
        query_rows, title_rows: rows of the token caches, (rows,) and (candidates,).
    """

    num_rows: int
    blocks: list[NDArray[Any]]
    ids: dict[str, NDArray[np.int64]]
    offsets: dict[str, NDArray[np.int64]]
    texts: dict[str, Texts]
    query_rows: NDArray[np.int64]
    title_rows: NDArray[np.int64]


BatchArrays = dict[str, NDArray[Any]]
"""Fields of `SearchBatch`; jagged ones as `*.values` and `*.lengths`."""
Piece = tuple[PreparedRows, int, int]
"""Rows `start..stop` of prepared rows."""


class BatchBuilder:
    """Builds batches of `max_requests` requests and `max_candidates` candidates from sample columns.

    Raises:
        ValueError: a feature that is no column of ids, or token bags of titles in a table with sequences.
    """

    def __init__(self, config: RunConfig, tokenizer: Path, max_requests: int, max_candidates: int) -> None:
        self._data = config.data
        self._max_requests, self._max_candidates = max_requests, max_candidates
        texts = TextTokenizer(tokenizer)
        self._queries = TokenCache(texts, config.text.query_tokens)
        self._titles = TokenCache(texts, config.text.title_tokens)
        self._tables = {name: config.tables[feature.table].rows for name, feature in config.features.items()}
        _check_features(config)
        bags = config.bag_tables()
        self._bag_features = [name for name, f in config.features.items() if f.table in bags]
        self._request_features = [name for name, f in config.features.items() if f.table not in bags]
        self._families = {name: family_of(name) for name in self._request_features}
        self.limits = {"history": config.data.history_length, "peer": config.data.peer_length}
        """Events kept of a row by family, for `to_columns`."""
        plain = [name for name in self._tables if name != TITLE_TOKENS]
        if TITLE_TOKENS in self._tables:
            self._token_rows = texts.vocabulary_rows(self._tables[TITLE_TOKENS])  # -1: special
        statistics, events = (config.data.levels.count + 1,), (config.data.history_length,)
        self._shapes = [(), (), statistics, events, events, (), ()]  # of a row's values, for each block
        self.columns = list(dict.fromkeys([*_COLUMNS, *plain]))
        """The sample columns that a batch is made of."""

    def prepare(self, columns: Columns) -> PreparedRows:
        """Everything that is done once for many batches."""
        values, offsets, boundaries = columns.values, columns.offsets, self._data.levels.boundaries
        lengths = np.diff(offsets["history"])
        present = np.arange(self._data.history_length) < lengths[:, None]  # (rows, L)
        events = {name: values[f"history_{name}"] for name in ("click", "position", "age")}
        events["level"] = grade_levels(values["history_relevance"], boundaries)
        fields = values | {f"history_{name}": _left_aligned(flat, present) for name, flat in events.items()}
        fields |= {
            "history_lengths": lengths,
            "item_id": values["candidate_item_id"], "position": values["candidate_position"],
            "click": values["candidate_click"] == 1, "click_weight": values["candidate_click"] != UNLABELLED,
            "relevance": values["candidate_relevance"], "level": grade_levels(values["candidate_relevance"], boundaries),
            "item_shown": values["candidate_shown"], "item_clicked": values["candidate_clicked"],
        }  # fmt: skip
        blocks = [np.stack([fields[name] for name in names]) for _, _, names in _BLOCKS]
        ids = {name: table_rows(values[name], rows) for name, rows in self._tables.items() if name in values}
        none = np.zeros(0, dtype=np.int64)
        rows = PreparedRows(columns.num_rows, blocks, ids, offsets, columns.texts, none, none)
        self._tokenise(rows)
        return rows

    def trim(self, carried: Sequence[PreparedRows]) -> None:
        """Keeps the token caches bounded; call it before `prepare` with the rows that are still to be built."""
        trimmed = [cache.trim() for cache in (self._queries, self._titles)]
        if any(trimmed):
            for rows in carried:
                self._tokenise(rows)

    def build(self, pieces: Sequence[Piece]) -> SearchBatch:
        """One padded batch of the pieces' rows, in order; no pieces make a batch of padding alone."""
        return self.to_batch(self.build_arrays(pieces))

    def to_batch(self, arrays: BatchArrays) -> SearchBatch:
        """Wraps `build_arrays`'s arrays, without a copy."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for name, keys in (("request_features", self._request_features), ("candidate_features", self._bag_features)):
            values, lengths = tensors.pop(f"{name}.values"), tensors.pop(f"{name}.lengths")
            stride = self._max_requests if name == "request_features" else self._max_candidates
            tensors[name] = KeyedJaggedTensor(keys=keys, values=values, lengths=lengths, stride=stride)
        return SearchBatch(**tensors)

    def build_arrays(self, pieces: Sequence[Piece]) -> BatchArrays:
        """`build` in numpy: that crosses processes many times faster than tensors do, one file descriptor each."""
        R, C = self._max_requests, self._max_candidates
        spans = [(rows, *rows.offsets["candidate"][[start, stop]].tolist()) for rows, start, stop in pieces]
        counts = _lengths(pieces, "candidate", R)
        num_requests, num_candidates = sum(stop - start for _, start, stop in pieces), int(counts.sum())
        assert num_requests <= R and num_candidates <= C, "the plan and the rows disagree"
        fields: BatchArrays = {}
        for block, (side, dtype, names) in enumerate(_BLOCKS):
            size, parts = (R, pieces) if side == _R else (C, spans)
            fields |= zip(names, self._padded(block, size, dtype, parts), strict=True)
        fields["request_id"][num_requests:] = -1
        fields["relevance"][num_candidates:] = np.nan
        fields["request_weight"] = (np.arange(R) < num_requests).astype(np.float32)
        fields["candidate_weight"] = (np.arange(C) < num_candidates).astype(np.float32)
        fields["candidate_request"] = np.full(C, R - 1, dtype=np.int64)
        fields["candidate_request"][:num_candidates] = np.repeat(np.arange(R), counts)
        fields["query_tokens"], fields["query_index"] = _distinct([r.query_rows[a:b] for r, a, b in pieces], R, self._queries)
        fields["title_tokens"], fields["title_index"] = _distinct([r.title_rows[a:b] for r, a, b in spans], C, self._titles)
        self._add_request_features(fields, pieces)
        self._add_candidate_features(fields, spans, num_candidates)
        return fields

    def _padded(self, block: int, size: int, dtype: Any, parts: Sequence[Piece]) -> NDArray[Any]:
        """(fields, size, ...)."""
        padded = np.zeros((len(_BLOCKS[block][2]), size, *self._shapes[block]), dtype=dtype)
        end = 0
        for rows, start, stop in parts:
            begin, end = end, end + stop - start
            padded[:, begin:end] = rows.blocks[block][:, start:stop]
        return padded

    def _add_request_features(self, fields: BatchArrays, pieces: Sequence[Piece]) -> None:
        R = self._max_requests
        values: list[NDArray[np.int64]] = []
        lengths = np.zeros((len(self._request_features), R), dtype=np.int64)
        by_family = {family: _lengths(pieces, family, R) for family in set(self._families.values())}
        for row, name in enumerate(self._request_features):
            family = self._families[name]
            lengths[row] = by_family[family]
            for rows, start, stop in pieces:
                span = slice(start, stop) if family is None else slice(rows.offsets[family][start], rows.offsets[family][stop])
                values.append(rows.ids[name][span])
        fields |= {"request_features.values": _joined(values), "request_features.lengths": lengths.reshape(-1)}

    def _add_candidate_features(self, fields: BatchArrays, spans: Sequence[Piece], num_candidates: int) -> None:
        values: list[NDArray[np.int64]] = []
        lengths = np.zeros((len(self._bag_features), self._max_candidates), dtype=np.int64)
        for row, name in enumerate(self._bag_features):
            if name == TITLE_TOKENS:
                ids = self._token_rows[fields["title_tokens"][fields["title_index"][:num_candidates]]]  # (candidates, tokens)
                lengths[row, :num_candidates] = (ids >= 0).sum(1)
                values.append(ids[ids >= 0])
            else:
                lengths[row, :num_candidates] = 1
                values += [rows.ids[name][start:stop] for rows, start, stop in spans]
        fields |= {"candidate_features.values": _joined(values), "candidate_features.lengths": lengths.reshape(-1)}

    def _tokenise(self, rows: PreparedRows) -> None:
        queries, titles = rows.texts["query"], rows.texts["candidate_title"]
        rows.query_rows = self._queries.rows(queries.distinct)[queries.index]
        rows.title_rows = self._titles.rows(titles.distinct)[titles.index]


def _left_aligned(events: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[Any]:
    """(rows, L) with each row's events first, then zeros."""
    dense = np.zeros(present.shape, dtype=events.dtype)
    dense[present] = events
    return dense


def _lengths(pieces: Sequence[Piece], family: str | None, size: int) -> NDArray[np.int64]:
    """(size,) events of each row, 1 where there is no family; padded with 0."""
    lengths = np.zeros(size, dtype=np.int64)
    end = 0
    for rows, start, stop in pieces:
        begin, end = end, end + stop - start
        lengths[begin:end] = 1 if family is None else np.diff(rows.offsets[family][start : stop + 1])
    return lengths


def _distinct(parts: list[NDArray[np.int64]], size: int, cache: TokenCache) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of the distinct texts, and (size,) indices into them."""
    rows = np.concatenate(parts) if any(map(len, parts)) else cache.rows([""])  # an encoder never sees no text at all
    tokens, inverse = cache.distinct(rows)
    index = np.zeros(size, dtype=np.int64)
    index[: len(rows)] = inverse
    return tokens, index


def _joined(values: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(values) if values else np.zeros(0, dtype=np.int64)


def _check_features(config: RunConfig) -> None:
    columns = {f.name: f.type.value_type if pa.types.is_list(f.type) else f.type for f in sample_schema(config.data)}
    valid = [*(name for name, kind in columns.items() if kind == pa.int64() and name not in _NO_IDS), TITLE_TOKENS]
    for name, feature in config.features.items():
        if name in columns and name not in valid:
            raise ValueError(f"features.{name}: this sample column holds no ids (valid: {', '.join(valid)})")
        if name not in valid:
            raise ValueError(f"features.{name}: no sample column of ids has this name{nearest(name, valid)}")
        if name == TITLE_TOKENS and feature.table not in config.bag_tables():
            raise ValueError(f"features.{name}: table {feature.table!r} also serves sequences or requests; give it its own")
