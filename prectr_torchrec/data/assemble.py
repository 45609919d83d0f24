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
from prectr_torchrec.data.columns import Columns, Texts, family_of
from prectr_torchrec.data.hashing import table_rows
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.data.schema import sample_schema
from prectr_torchrec.data.tokens import TokenCache

TOKEN_FEATURES = {"query_tokens": "query", "candidate_title_tokens": "candidate_title"}
"""Features that are bags of a text's token ids (no special tokens) -> their text column."""

_REQUEST_FIELDS: dict[str, Any] = {
    "request_id": np.int64, "user_id": np.int64,
    "user_events": np.float32, "user_query_events": np.float32, "query_events": np.float32,
    "user_shown": np.float32, "user_clicked": np.float32, "query_shown": np.float32, "query_clicked": np.float32,
    "history_lengths": np.int64, "history_level": np.int64, "history_click": np.int64, "history_position": np.int64,
    "history_age": np.float32,
}  # fmt: skip
_CANDIDATE_FIELDS: dict[str, Any] = {
    "item_id": np.int64, "position": np.int64, "click": np.float32, "click_weight": np.float32,
    "relevance": np.float32, "level": np.int64, "item_shown": np.float32, "item_clicked": np.float32,
}  # fmt: skip
_CANDIDATE_COLUMNS = {"item_id": "candidate_item_id", "position": "candidate_position", "relevance": "candidate_relevance",
                      "item_shown": "candidate_shown", "item_clicked": "candidate_clicked"}  # fmt: skip
_BASE_COLUMNS = [
    *(name for name in _REQUEST_FIELDS if not name.startswith("history_")), "query", "candidate_title", "candidate_click",
    *_CANDIDATE_COLUMNS.values(), *(f"history_{name}" for name in ("relevance", "click", "position", "age")),
]  # fmt: skip
_FILL = {"request_id": -1, "relevance": np.nan}
"""What padding holds where it is not zero."""


@dataclass
class PreparedRows:
    """Requests ready to be cut into batches.

    Attributes:
        requests: field of `SearchBatch` -> (rows, ...).
        candidates: field of `SearchBatch` -> (candidates,).
        ids: feature -> table rows, (rows,) or (events of its family,).
        offsets: family -> (rows + 1,).
        query_rows, title_rows: rows of the token caches, (rows,) and (candidates,).
    """

    num_rows: int
    requests: dict[str, NDArray[Any]]
    candidates: dict[str, NDArray[Any]]
    ids: dict[str, NDArray[np.int64]]
    offsets: dict[str, NDArray[np.int64]]
    texts: dict[str, Texts]
    query_rows: NDArray[np.int64]
    title_rows: NDArray[np.int64]


Piece = tuple[PreparedRows, int, int]
"""Rows `start..stop` of prepared rows."""


class BatchBuilder:
    """Builds batches of `max_requests` requests and `max_candidates` candidates from sample columns.

    Raises:
        ValueError: a feature that is no column of integer ids, or token bags of titles in a table with sequences.
    """

    def __init__(self, config: RunConfig, tokenizer: Path, max_requests: int, max_candidates: int) -> None:
        self._data = config.data
        self._max_requests, self._max_candidates = max_requests, max_candidates
        self._queries = TokenCache(tokenizer, config.text.query_tokens)
        self._titles = TokenCache(tokenizer, config.text.title_tokens)
        self._tables = {name: config.tables[feature.table].rows for name, feature in config.features.items()}
        _check_features(config)
        bags = config.bag_tables()
        self._bag_features = [name for name, f in config.features.items() if f.table in bags]
        self._request_features = [name for name, f in config.features.items() if f.table not in bags]
        self.limits = {"history": config.data.history_length, "peer": config.data.peer_length}
        """Events kept of a row by family, for `to_columns`."""
        plain = [name for name in self._tables if name not in TOKEN_FEATURES]
        self._token_rows = {name: self._titles.vocabulary_rows(self._tables[name]) for name in TOKEN_FEATURES if name in self._tables}
        statistics, events = (config.data.levels.count + 1,), (config.data.history_length,)
        self._shapes = {name: statistics for name in _REQUEST_FIELDS if name.endswith(("_shown", "_clicked"))}
        self._shapes |= {f"history_{name}": events for name in ("level", "click", "position", "age")}
        self.columns = list(dict.fromkeys([*_BASE_COLUMNS, *plain]))
        """The sample columns that a batch is made of."""

    def prepare(self, columns: Columns) -> PreparedRows:
        """Everything that is done once for many batches."""
        values, offsets = columns.values, columns.offsets
        clicks = values["candidate_click"]
        candidates = {field: values[column] for field, column in _CANDIDATE_COLUMNS.items()}
        candidates |= {"click": clicks == 1, "click_weight": clicks >= 0}
        candidates["level"] = grade_levels(values["candidate_relevance"], self._data.levels.boundaries)
        requests = {field: values[field] for field in _REQUEST_FIELDS if field in values}
        lengths = np.diff(offsets["history"])
        history = {name: values[f"history_{name}"] for name in ("click", "position", "age")}
        history["level"] = grade_levels(values["history_relevance"], self._data.levels.boundaries)
        requests["history_lengths"] = lengths
        present = np.arange(self._data.history_length) < lengths[:, None]  # (rows, L)
        for name, events in history.items():
            dense = np.zeros(present.shape, dtype=events.dtype)
            dense[present] = events
            requests[f"history_{name}"] = dense
        ids = {name: table_rows(values[name], rows) for name, rows in self._tables.items() if name in values}
        none = np.zeros(0, dtype=np.int64)
        rows = PreparedRows(columns.num_rows, requests, candidates, ids, offsets, columns.texts, none, none)
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
        R, C = self._max_requests, self._max_candidates
        spans = [(rows, int(rows.offsets["candidate"][start]), int(rows.offsets["candidate"][stop])) for rows, start, stop in pieces]
        counts = _lengths(pieces, "candidate", R)
        num_requests, num_candidates = sum(stop - start for _, start, stop in pieces), int(counts.sum())
        assert num_requests <= R and num_candidates <= C, "the plan and the rows disagree"
        fields = {name: self._padded(name, R, dtype, [r.requests[name][a:b] for r, a, b in pieces])
                  for name, dtype in _REQUEST_FIELDS.items()}  # fmt: skip
        fields |= {name: self._padded(name, C, dtype, [r.candidates[name][a:b] for r, a, b in spans])
                   for name, dtype in _CANDIDATE_FIELDS.items()}  # fmt: skip
        fields["request_weight"] = (np.arange(R) < num_requests).astype(np.float32)
        fields["candidate_weight"] = (np.arange(C) < num_candidates).astype(np.float32)
        fields["candidate_request"] = np.full(C, R - 1, dtype=np.int64)
        fields["candidate_request"][:num_candidates] = np.repeat(np.arange(R), counts)
        fields["query_tokens"], fields["query_index"] = _distinct([r.query_rows[a:b] for r, a, b in pieces], R, self._queries)
        fields["title_tokens"], fields["title_index"] = _distinct([r.title_rows[a:b] for r, a, b in spans], C, self._titles)
        return SearchBatch(
            request_features=self._request_kjt(pieces, fields),
            candidate_features=self._candidate_kjt(spans, num_candidates, fields),
            **{name: torch.from_numpy(array) for name, array in fields.items()},
        )

    def _padded(self, name: str, size: int, dtype: Any, parts: list[NDArray[Any]]) -> NDArray[Any]:
        padded = np.empty((size, *self._shapes.get(name, ())), dtype=dtype)
        end = 0
        for part in parts:
            start, end = end, end + len(part)
            padded[start:end] = part
        padded[end:] = _FILL.get(name, 0)
        return padded

    def _request_kjt(self, pieces: Sequence[Piece], fields: dict[str, NDArray[Any]]) -> KeyedJaggedTensor:
        R = self._max_requests
        values: list[NDArray[np.int64]] = []
        lengths = np.zeros((len(self._request_features), R), dtype=np.int64)
        by_family = {family: _lengths(pieces, family, R) for family in {family_of(name) for name in self._request_features}}
        for row, name in enumerate(self._request_features):
            family = family_of(name)
            if name in TOKEN_FEATURES:
                num_requests = int(fields["request_weight"].sum())
                tokens, lengths[row, :num_requests] = self._token_bag(name, fields["query_tokens"], fields["query_index"][:num_requests])
                values.append(tokens)
                continue
            lengths[row] = by_family[family]
            for rows, start, stop in pieces:
                span = slice(start, stop) if family is None else slice(rows.offsets[family][start], rows.offsets[family][stop])
                values.append(rows.ids[name][span])
        return _kjt(self._request_features, values, lengths)

    def _candidate_kjt(self, spans: Sequence[Piece], num_candidates: int, fields: dict[str, NDArray[Any]]) -> KeyedJaggedTensor:
        values: list[NDArray[np.int64]] = []
        lengths = np.zeros((len(self._bag_features), self._max_candidates), dtype=np.int64)
        for row, name in enumerate(self._bag_features):
            if name in TOKEN_FEATURES:
                tokens, lengths[row, :num_candidates] = self._token_bag(name, fields["title_tokens"], fields["title_index"][:num_candidates])
                values.append(tokens)
            else:
                lengths[row, :num_candidates] = 1
                values += [rows.ids[name][start:stop] for rows, start, stop in spans]
        return _kjt(self._bag_features, values, lengths)

    def _token_bag(self, name: str, tokens: NDArray[np.int64], index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Table rows of the texts' tokens, one text after the other, and the number of each text's."""
        rows = self._token_rows[name][tokens[index]]  # -1: special
        kept = rows >= 0
        return rows[kept], kept.sum(1)

    def _tokenise(self, rows: PreparedRows) -> None:
        queries, titles = rows.texts["query"], rows.texts["candidate_title"]
        rows.query_rows = self._queries.rows(queries.distinct)[queries.index]
        rows.title_rows = self._titles.rows(titles.distinct)[titles.index]


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


def _kjt(keys: list[str], values: list[NDArray[np.int64]], lengths: NDArray[np.int64]) -> KeyedJaggedTensor:
    joined = np.concatenate(values) if values else np.zeros(0, dtype=np.int64)
    return KeyedJaggedTensor(keys=keys, values=torch.from_numpy(joined), lengths=torch.from_numpy(lengths.reshape(-1)),
                             stride=lengths.shape[1])  # fmt: skip


def _check_features(config: RunConfig) -> None:
    schema = sample_schema(config.data)
    for name, feature in config.features.items():
        if name in TOKEN_FEATURES:
            if name == "candidate_title_tokens" and feature.table not in config.bag_tables():
                raise ValueError(f"features.{name}: table {feature.table!r} also serves sequences or requests; give it one of its own")
            continue
        integers = [f.name for f in schema if pa.types.is_integer(f.type.value_type if pa.types.is_list(f.type) else f.type)]
        if name not in integers:
            raise ValueError(f"features.{name}: no sample column of integer ids has this name{nearest(name, [*integers, *TOKEN_FEATURES])}")
