"""From sample columns to `SearchBatch`: ids to table rows, grades to levels, texts to tokens, padding to constant shape."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec import KeyedJaggedTensor

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.column_kinds import UNLABELLED, Texts
from prectr_torchrec.data.columns import COUNTS, Column, family_of, sample_columns
from prectr_torchrec.data.hashing import table_rows
from prectr_torchrec.data.levels import grade_levels, unpack_levels
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.features import TITLE_TOKENS, check_features
from prectr_torchrec.data.reader.flat import Columns
from prectr_torchrec.data.tokens import TextTokenizer, TokenCache

_R, _C = "requests", "candidates"


@dataclass(frozen=True)
class _Block:
    """Fields of one dtype and shape, which are stored, sliced and padded together.

    Attributes:
        side: whether a row is a request or a candidate.
        shape: of a row's value.
        columns: the sample columns of the fields; none where these are not read but stay zero.
    """

    side: str
    dtype: Any
    shape: tuple[int, ...]
    fields: tuple[str, ...]
    columns: tuple[str, ...]


def _blocks(config: RunConfig, predicted: bool) -> list[_Block]:
    statistics, history = (config.data.levels.count + 1,), (config.data.history_length,)
    counts = ("user_events", "user_query_events", "query_events")
    by_level = ("user_shown", "user_clicked", "query_shown", "query_clicked")
    candidate = tuple(f"candidate_{name}" for name in ("item_id", "position", "click", "relevance", "shown", "clicked"))
    blocks = [
        _Block(_R, np.int64, (), ("request_id", "user_id", "history_lengths"), ("request_id", "user_id")),
        _Block(_R, np.float32, (), counts, counts),
        _Block(_R, np.float32, statistics, by_level, by_level),
        _Block(
            _R,
            np.int64,
            history,
            tuple(f"history_{name}" for name in ("level", "click", "position")),
            tuple(f"history_{name}" for name in ("relevance", "click", "position")),
        ),
        _Block(_R, np.float32, history, ("history_age",), ("history_age",)),
        _Block(_C, np.int64, (), ("item_id", "position", "level"), candidate),
        _Block(_C, np.float32, (), ("click", "click_weight", "relevance", "item_shown", "item_clicked"), candidate),
    ]
    reads = config.model.reads()
    examined = ("user_examined", "query_examined", "group_shown", "group_clicked", "group_examined")
    read = config.model.position_corrected
    blocks += [
        _Block(_R, np.float32, statistics, examined, examined if read else ()),
        _Block(_C, np.float32, (), ("item_examined",), ("candidate_examined",) if read else ()),
    ]
    peers = (config.data.peer_length if "peer" in reads.sequences else 0,)
    integers = ("peer_level", "peer_click", "peer_position", "peer_in_group")
    columns = ("peer_relevance", *integers[1:]) if "peer" in reads.sequences else ()
    blocks += [
        _Block(_R, np.int64, (), ("peer_lengths",), columns),
        _Block(_R, np.int64, peers, integers, columns),
        _Block(_R, np.float32, peers, ("peer_age",), ("peer_age",) if "peer" in reads.sequences else ()),
    ]
    for family, side, events in (("history", _R, history), ("peer", _R, peers), ("candidate", _C, ())):
        read = predicted and 0 not in events
        shape = (*(events if read else (0,) * len(events)), config.data.levels.count)
        blocks.append(_Block(side, np.float32, shape, (f"{family}_predicted",), (f"{family}_predicted",) if read else ()))
    return blocks


@dataclass
class PreparedRows:
    """Requests ready to be cut into batches.

    Attributes:
        blocks: for each `_Block` that is read, (fields, rows, ...) or (fields, candidates).
        ids: feature -> table rows, (rows,) or (events of its family,).
        offsets: family -> (rows + 1,).
        query_rows, title_rows, history_rows: rows of the token caches, (rows,), (candidates,) and (history events,).
    """

    num_rows: int
    blocks: list[NDArray[Any]]
    ids: dict[str, NDArray[np.int64]]
    offsets: dict[str, NDArray[np.int64]]
    texts: dict[str, Texts]
    query_rows: NDArray[np.int64]
    title_rows: NDArray[np.int64]
    history_rows: NDArray[np.int64]


BatchArrays = dict[str, NDArray[Any]]
"""Fields of `SearchBatch`; jagged ones as `*.values` and `*.lengths`."""
Piece = tuple[PreparedRows, int, int]
"""Rows `start..stop` of prepared rows."""


class BatchBuilder:
    """Builds batches of `max_requests` requests and `max_candidates` candidates from sample columns.

    Args:
        config: `data`, `text`, `batch`, `tables`, `features` and `model` are used.
        tokenizer: a folder in Hugging Face layout.
        predicted: whether the samples have predicted levels.
        texts: whose tokens are kept, and as many words'.

    Raises:
        ValueError: a feature that is no column of ids, or token bags of titles in a table with sequences.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Path,
        max_requests: int,
        max_candidates: int,
        *,
        predicted: bool = False,
        texts: int = 1_000_000,
    ) -> None:
        self._data = config.data
        self._max_requests, self._max_candidates = max_requests, max_candidates
        tokens = TextTokenizer(tokenizer, texts)
        self._queries = TokenCache(tokens, config.text.query_tokens, texts)
        self._titles = TokenCache(tokens, config.text.title_tokens, texts)
        self._tables = {name: config.tables[feature.table].id_range for name, feature in config.features.items()}
        check_features(config)
        self._named = {column.name: column for column in sample_columns(config.data)}
        bags = config.bag_tables()
        self._bag_features = [name for name, f in config.features.items() if f.table in bags]
        self._request_features = [name for name, f in config.features.items() if f.table not in bags]
        self._families = {name: family_of(name) for name in self._request_features}
        self.limits = {"history": config.data.history_length, "peer": config.data.peer_length}
        """Events kept of a row by family, for `to_columns`."""
        plain = [name for name in self._tables if name != TITLE_TOKENS]
        if TITLE_TOKENS in self._tables:
            table = config.tables[config.features[TITLE_TOKENS].table]
            rows = tokens.vocabulary_rows(table.id_range)  # -1: special
            self._token_rows = np.where(rows < 0, rows, table_rows(rows, table.id_range)) if table.ids == "managed" else rows
        self._taste, self._peers = "history_title" in config.model.reads().texts, "peer" in config.model.reads().sequences
        self._all_blocks = {known: _blocks(config, known) for known in (False, True)}
        self._not_in_blocks = ["query", "candidate_title", *(["history_title"] if self._taste else []), *plain]
        self._read(predicted)

    def sized(self, max_requests: int, max_candidates: int, *, predicted: bool) -> BatchBuilder:
        """The same for batches of another size, at no cost; the token caches are shared."""
        other = copy.copy(self)
        other._max_requests, other._max_candidates = max_requests, max_candidates
        other._read(predicted)
        return other

    def _read(self, predicted: bool) -> None:
        self._blocks = [block for block in self._all_blocks[predicted] if block.columns]
        self._unread = [block for block in self._all_blocks[predicted] if not block.columns]
        of_blocks = (name for block in self._blocks for name in block.columns)
        self.columns: list[Column] = [self._named[name] for name in dict.fromkeys([*of_blocks, *self._not_in_blocks])]
        """The sample columns that a batch is made of."""

    def prepare(self, columns: Columns) -> PreparedRows:
        """Everything that is done once for many batches."""
        values, boundaries = columns.values, self._data.levels.boundaries
        fields = values | self._events(columns, "history", ("click", "position", "age"))
        if self._peers:
            fields |= self._events(columns, "peer", ("click", "position", "age", "in_group"))
        fields |= {
            "item_id": values["candidate_item_id"],
            "position": values["candidate_position"],
            "click": values["candidate_click"] == 1,
            "click_weight": values["candidate_click"] != UNLABELLED,
            "relevance": values["candidate_relevance"],
            "level": grade_levels(values["candidate_relevance"], boundaries),
            **{f"item_{what}": values[f"candidate_{what}"] for what in COUNTS if f"candidate_{what}" in values},
        }
        if "candidate_predicted" in values:
            fields["candidate_predicted"] = self._predicted(columns, "candidate")
        blocks = [np.stack([fields[name] for name in block.fields]) for block in self._blocks]
        ids = {name: table_rows(values[name], rows) for name, rows in self._tables.items() if name in values}
        none = np.zeros(0, dtype=np.int64)
        rows = PreparedRows(columns.num_rows, blocks, ids, columns.offsets, columns.texts, none, none, none)
        self._tokenise(rows)
        return rows

    def _events(self, columns: Columns, family: str, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The fields of `history` or `peer`: lengths (rows,) and events (rows, L or M)."""
        lengths = np.diff(columns.offsets[family])
        present = np.arange(self.limits[family]) < lengths[:, None]
        flat = {name: columns.values[f"{family}_{name}"] for name in names}
        flat["level"] = grade_levels(columns.values[f"{family}_relevance"], self._data.levels.boundaries)
        if f"{family}_predicted" in columns.values:
            flat["predicted"] = self._predicted(columns, family)
        dense = {f"{family}_{name}": _left_aligned(events, present) for name, events in flat.items()}
        return dense | {f"{family}_lengths": lengths}

    def _predicted(self, columns: Columns, family: str) -> NDArray[np.float32]:
        """(events, K) predicted levels of what has no grade, which wins."""
        graded = ~np.isnan(columns.values[f"{family}_relevance"])
        return unpack_levels(np.where(graded, 0, columns.values[f"{family}_predicted"]), self._data.levels.count)

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
        for place, block in enumerate(self._blocks):
            size, parts = (R, pieces) if block.side == _R else (C, spans)
            fields |= zip(block.fields, _padded(block, place, size, parts), strict=True)
        for block in self._unread:
            size = R if block.side == _R else C
            fields |= {name: np.zeros((size, *block.shape), block.dtype) for name in block.fields}
        fields["request_id"][num_requests:] = -1
        fields["relevance"][num_candidates:] = np.nan
        fields["request_weight"] = (np.arange(R) < num_requests).astype(np.float32)
        fields["candidate_weight"] = (np.arange(C) < num_candidates).astype(np.float32)
        fields["candidate_request"] = np.full(C, R - 1, dtype=np.int64)
        fields["candidate_request"][:num_candidates] = np.repeat(np.arange(R), counts)
        fields["query_tokens"], fields["query_index"] = _distinct([r.query_rows[a:b] for r, a, b in pieces], R, self._queries)
        fields["title_tokens"], fields["title_index"] = _distinct([r.title_rows[a:b] for r, a, b in spans], C, self._titles)
        self._add_history_titles(fields, pieces)
        self._add_request_features(fields, pieces)
        self._add_candidate_features(fields, spans, num_candidates)
        return fields

    def _add_history_titles(self, fields: BatchArrays, pieces: Sequence[Piece]) -> None:
        R, L = self._max_requests, self._data.history_length
        if not self._taste:
            fields["history_title_tokens"] = np.zeros((1, self._titles.num_tokens), dtype=np.int64)
            fields["history_title_index"] = np.zeros((R, 0), dtype=np.int64)
            return
        events = [rows.history_rows[slice(*rows.offsets["history"][[start, stop]].tolist())] for rows, start, stop in pieces]
        tokens, index = _distinct(events, sum(map(len, events)), self._titles)
        present = np.arange(L) < fields["history_lengths"][:, None]
        fields |= {"history_title_tokens": tokens, "history_title_index": _left_aligned(index, present)}

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
        if self._taste:
            titles = rows.texts["history_title"]
            rows.history_rows = self._titles.rows(titles.distinct)[titles.index]


def _padded(block: _Block, place: int, size: int, parts: Sequence[Piece]) -> NDArray[Any]:
    """(fields, size, ...) of the block that is number `place` of the rows' blocks."""
    padded = np.zeros((len(block.fields), size, *block.shape), dtype=block.dtype)
    end = 0
    for rows, start, stop in parts:
        begin, end = end, end + stop - start
        padded[:, begin:end] = rows.blocks[place][:, start:stop]
    return padded


def _left_aligned(events: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[Any]:
    """(rows, L, ...) with each row's events (events, ...) first, then zeros."""
    dense = np.zeros((*present.shape, *events.shape[1:]), dtype=events.dtype)
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
    if not any(map(len, parts)):  # an encoder never sees no text at all
        return cache.distinct(cache.rows([""]))[0], np.zeros(size, dtype=np.int64)
    tokens, inverse = cache.distinct(np.concatenate(parts))
    index = np.zeros(size, dtype=np.int64)
    index[: len(inverse)] = inverse
    return tokens, index


def _joined(values: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(values) if values else np.zeros(0, dtype=np.int64)
