"""The batch written the plain way, row by row in Python: the reader's oracle in the tests and its yardstick in the benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset
from torchrec import KeyedJaggedTensor

from prectr_torchrec.config.columns import TextColumn
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.column_kinds import (
    Flag,
    Grade,
    Id,
    Label,
    Measure,
    Number,
    Position,
    Text,
    Vector,
    Whole,
)
from prectr_torchrec.data.columns import Column, declared_of, sample_columns
from prectr_torchrec.data.counted_kinds import Counter, Distribution
from prectr_torchrec.data.list_kinds import Ids, Weights

MASK = 2**64 - 1


def mix64(value: int) -> int:
    value &= MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


class RowDataset(IterableDataset[list[dict[str, Any]]]):
    """Sample rows as dicts, in file order, grouped into batches of at most R requests and C candidates."""

    def __init__(self, paths: list[Path], columns: list[str], requests: int, candidates: int) -> None:
        self.paths, self.columns, self.requests, self.candidates = paths, columns, requests, candidates

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batch: list[dict[str, Any]] = []
        candidates = 0
        for path in self.paths:
            for record_batch in pq.ParquetFile(path).iter_batches(self.requests, columns=self.columns):
                for row in record_batch.to_pylist():
                    count = len(row["candidate_item_id"])
                    if len(batch) == self.requests or candidates + count > self.candidates:
                        yield batch
                        batch, candidates = [], 0
                    batch.append(row)
                    candidates += count
        if batch:
            yield batch


class RowBatch(NamedTuple):
    """What a `SearchBatch` is to hold; views that no ranker of the configuration reads may be among them."""

    request_features: KeyedJaggedTensor
    candidate_features: KeyedJaggedTensor
    views: dict[str, torch.Tensor]
    texts: dict[str, torch.Tensor]


class RowCollate:
    """Rows -> `RowBatch`; `predicted`: the rows have predicted levels; `columns`: the only ones that they have."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Path,
        requests: int,
        candidates: int,
        *,
        predicted: bool = False,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.config, self.requests, self.candidates, self.predicted = config, requests, candidates, predicted
        self.tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        self.special = {0, *(i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special)}
        self.further = declared_of(config.data, TextColumn)
        self.columns = [column for column in sample_columns(config.data) if columns is None or column.name in columns]

    def __call__(self, rows: list[dict[str, Any]]) -> RowBatch:
        R, C, views = self.requests, self.candidates, {}
        counts = [len(row["candidate_item_id"]) for row in rows]
        real = sum(counts)
        views["request_weight"] = torch.tensor([1.0] * len(rows) + [0.0] * (R - len(rows)))
        views["candidate_weight"] = torch.tensor([1.0] * real + [0.0] * (C - real))
        owners = [r for r, count in enumerate(counts) for _ in range(count)]
        views["candidate_request"] = torch.tensor(owners + [R - 1] * (C - real))
        for family in ("history", "peer"):
            if any(column.family == family for column in self.columns):
                lengths = [len(self.events(row, f"{family}_item_id")) for row in rows]
                views[f"{family}_lengths"] = torch.tensor(lengths + [0] * (R - len(rows)))
        texts = {}
        for column in self.columns:
            if isinstance(column.kind, Text):
                name = column.name if column.family == "history" else column.key
                texts[name], views[f"{column.name}_index"] = self.text(column, rows)
            else:
                views |= self.views(column, rows)
        titles = list(dict.fromkeys(title for row in rows for title in row["candidate_title"])) or [""]
        tokens = texts["title"].tolist()
        bags = self.candidate_features(rows, dict(zip(titles, tokens, strict=True)))
        return RowBatch(self.request_features(rows), bags, views, texts)

    def views(self, column: Column, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The views of a column, each cell by itself."""
        grades = [row.get(f"{column.family}_relevance") for row in rows]
        found = {}
        for key, (fill, dtype, of_cell) in self.cells(column).items():
            if column.family == "request":
                values = [of_cell(row[column.name], None) for row in rows]
                values += [fill] * (self.requests - len(rows))
            elif column.family == "candidate":
                pairs = [zip(row[column.name], given, strict=True) for row, given in zip(rows, grades, strict=True)]
                values = [of_cell(cell, grade) for pair in pairs for cell, grade in pair]
                values += [fill] * (self.candidates - len(values))
            else:
                width = self.width(column.family) if self.predicted or column.key != "predicted" else 0
                values = []
                for row in rows if width else []:
                    events = zip(self.events(row, column.name), self.events(row, f"{column.family}_relevance"), strict=True)
                    cells = [of_cell(cell, grade) for cell, grade in events]
                    values.append(cells + [fill] * (width - len(cells)))
                values += [[fill] * width] * (self.requests - len(values))
                if not width:
                    shape = (self.requests, 0, len(fill)) if isinstance(fill, list) else (self.requests, 0)
                    found[f"{column.family}_{key}"] = torch.zeros(shape, dtype=dtype)
                    continue
            found[key if column.family == "request" else f"{column.family}_{key}"] = torch.tensor(values, dtype=dtype)
        return found

    def cells(self, column: Column) -> dict[str, tuple[Any, torch.dtype, Callable[[Any, Any], Any]]]:
        """View -> padding, dtype, and what it makes of a cell, beside its grade."""
        f32, i64, K = torch.float32, torch.int64, self.config.data.levels.count
        key = column.key
        match column.kind:
            case Label():
                weight = (0.0, f32, lambda cell, _: float(cell is not None))
                return {key: (0.0, f32, lambda cell, _: float(cell or 0)), f"{key}_weight": weight}
            case Id() if column.name not in ("request_id", "user_id", "candidate_item_id"):
                return {}  # looked up, and no view
            case Ids() | Weights():
                return {}
            case Id() | Position() | Flag():
                return {key: (-1 if key == "request_id" else 0, i64, lambda cell, _: cell)}
            case Whole() | Number() if column.family in ("history", "peer"):
                return {key: (0.0, f32, lambda cell, _: cell)}
            case Whole() | Number():
                return {key: ([0.0], f32, lambda cell, _: [float(cell)])}
            case Counter():
                return {key: ([0.0] * (K + 1), f32, lambda cell, _: cell)}
            case Measure():
                return {key: ([math.nan], f32, lambda cell, _: [math.nan if cell is None else cell])}
            case Vector(width):
                nothing = [math.nan] * width
                return {key: (nothing, f32, lambda cell, _: nothing if cell is None else cell)}
            case Grade():
                level = (0, i64, lambda cell, _: self.level(cell))
                return {key: (math.nan, f32, lambda cell, _: math.nan if cell is None else cell), "level": level}
            case Distribution():
                return {key: ([0.0] * K, f32, lambda cell, grade: self.probabilities(0 if grade is not None else cell))}
        raise AssertionError(column.kind)

    def text(self, column: Column, rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of the distinct texts of a column, and which of them each row, candidate or event has."""
        widths = {"query": self.config.text.query_tokens, "title": self.config.text.title_tokens}
        width = (widths | {further.key: settings.tokens for further, settings in self.further})[column.key]
        lists = [self.events(row, column.name) if column.listed else [row[column.name]] for row in rows]
        distinct = list(dict.fromkeys(text for texts in lists for text in texts)) or [""]
        place = {text: i for i, text in enumerate(distinct)}
        index = [[place[text] for text in texts] for texts in lists]
        if column.family == "history":
            padded = [of_row + [0] * (self.width("history") - len(of_row)) for of_row in index]
            padded += [[0] * self.width("history")] * (self.requests - len(rows))
            places = torch.tensor(padded, dtype=torch.int64).reshape(self.requests, -1)
        else:
            flat, size = [i for of_row in index for i in of_row], self.candidates if column.listed else self.requests
            places = torch.tensor(flat + [0] * (size - len(flat)))
        return torch.tensor(self.tokens(distinct, width)), places

    def width(self, family: str) -> int:
        return {"history": self.config.data.history_length, "peer": self.config.data.peer_length}[family]

    def tokens(self, texts: list[str], width: int) -> list[list[int]]:
        self.tokenizer.enable_truncation(width)
        self.tokenizer.enable_padding(length=width)
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]

    def level(self, grade: float | None) -> int:
        if grade is None:
            return 0
        return 1 + sum(grade > boundary + 1e-6 for boundary in self.config.data.levels.boundaries)

    def probabilities(self, packed: int) -> list[float]:
        return [(packed >> 8 * k & 255) / 128 * self.predicted for k in range(self.config.data.levels.count)]

    def events(self, row: dict[str, Any], name: str) -> list[Any]:
        """The events of a list column that are kept, or all candidates."""
        if name.startswith("candidate_"):
            return list(row[name])
        limit = self.width(name.split("_")[0])
        return row[name][-limit:] if limit else []

    def bag(self, tokens: list[int], rows: int) -> list[int]:
        return [token % rows for token in tokens if token not in self.special]

    def lists(
        self, cell: Any, row: dict[str, Any], weights: str | None, place: int | None, name: str
    ) -> tuple[list[int], list[float]]:
        """Table rows and weights of a cell: of one id, or of a bag."""
        feature = self.config.features[name]
        found = [mix64(value) % self.config.tables[feature.table].rows for value in (cell if isinstance(cell, list) else [cell])]
        if weights is None:
            return found, [1.0] * len(found)
        given = row[weights] if place is None else row[weights][place]
        if feature.pooling == "mean":
            total = sum(given)
            given = [weight / total if total else 0.0 for weight in given]
        return found, given

    def shares(self, name: str, ids: list[int]) -> list[float]:
        """Weights of ids that are averaged without weights of their own."""
        feature = self.config.features[name]
        return [1 / len(ids) for _ in ids] if feature.pooling == "mean" and not feature.weights else []

    def request_features(self, rows: list[dict[str, Any]]) -> KeyedJaggedTensor:
        keys, values, lengths, counts = [], [], [], list[float]()
        features = {name: f for name, f in self.config.features.items() if name not in self.bags_of_candidates()}
        for name, feature in features.items():
            keys.append(name)
            column = feature.column or name
            for row in rows:
                if column.startswith(("history_", "peer_")):
                    cells = self.events(row, column)
                elif column.startswith("candidate_"):
                    cells = row[column]
                else:
                    cells = [row[column]]
                found = [self.lists(cell, row, feature.weights, None, name) for cell in cells]
                ids = [value for ids, _ in found for value in ids]
                values += ids
                counts += self.shares(name, ids) or [weight for _, weights in found for weight in weights]
                lengths.append(sum(len(ids) for ids, _ in found))
            lengths.extend([0] * (self.requests - len(rows)))
        return self.jagged(keys, values, lengths, counts if any(f.weights for f in features.values()) else None, self.requests)

    def bags_of_candidates(self) -> set[str]:
        tables = self.config.bag_tables()
        return {n for n, f in self.config.features.items() if n.startswith("candidate_") and f.table in tables}

    def candidate_features(self, rows: list[dict[str, Any]], tokens_of: dict[str, list[int]]) -> KeyedJaggedTensor:
        keys, values, lengths, counts = [], [], [], list[float]()
        features = {name: f for name, f in self.config.features.items() if name in self.bags_of_candidates()}
        for name, feature in features.items():
            keys.append(name)
            num_embeddings, count = self.config.tables[feature.table].rows, 0
            for row in rows:
                for i, title in enumerate(row["candidate_title"]):
                    if name == "candidate_title_tokens":
                        ids = self.bag(tokens_of[title], num_embeddings)
                        weights = [1.0] * len(ids)
                    else:
                        ids, weights = self.lists(row[feature.column or name][i], row, feature.weights, i, name)
                    values.extend(ids)
                    counts.extend(self.shares(name, ids) or weights)
                    lengths.append(len(ids))
                    count += 1
            lengths.extend([0] * (self.candidates - count))
        return self.jagged(keys, values, lengths, counts if any(f.weights for f in features.values()) else None, self.candidates)

    def jagged(
        self, keys: list[str], values: list[int], lengths: list[int], weights: list[float] | None, stride: int
    ) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(
            keys,
            torch.tensor(values, dtype=torch.int64),
            lengths=torch.tensor(lengths, dtype=torch.int64),
            weights=None if weights is None else torch.tensor(weights, dtype=torch.float32),
            stride=stride,
        )
