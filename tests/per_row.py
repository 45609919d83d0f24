"""The batch written the plain way, row by row in Python: the reader's oracle in the tests and its yardstick in the benchmark."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset
from torchrec import KeyedJaggedTensor

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.batch import SearchBatch

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


class RowCollate:
    """Rows -> `SearchBatch`; `predicted`: the rows have predicted levels."""

    def __init__(self, config: RunConfig, tokenizer: Path, requests: int, candidates: int, predicted: bool = False) -> None:
        self.config, self.requests, self.candidates, self.predicted = config, requests, candidates, predicted
        self.tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        self.special = {0, *(i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special)}

    def __call__(self, rows: list[dict[str, Any]]) -> SearchBatch:
        config, R, C = self.config, self.requests, self.candidates
        padding = R - len(rows)
        queries = list(dict.fromkeys(row["query"] for row in rows)) or [""]
        titles = list(dict.fromkeys(title for row in rows for title in row["candidate_title"])) or [""]
        query_tokens, title_tokens = self.tokens(queries, config.text.query_tokens), self.tokens(titles, config.text.title_tokens)
        query_row, title_row = ({text: i for i, text in enumerate(texts)} for texts in (queries, titles))
        statistics = [0.0] * (config.data.levels.count + 1)
        candidate_request, item_id, position, click, click_weight, relevance, level, shown, clicked, title_index = (
            [] for _ in range(10)
        )
        item_examined: list[float] = []
        predicted: list[list[float]] = []
        examined = config.model.position_corrected
        for r, row in enumerate(rows):
            for i, item in enumerate(row["candidate_item_id"]):
                grade, label = row["candidate_relevance"][i], row["candidate_click"][i]
                candidate_request.append(r)
                item_id.append(item)
                position.append(row["candidate_position"][i])
                click.append(float(label or 0))
                click_weight.append(float(label is not None))
                relevance.append(math.nan if grade is None else grade)
                level.append(self.level(grade))
                shown.append(row["candidate_shown"][i])
                clicked.append(row["candidate_clicked"][i])
                predicted.append(self.probabilities(row["candidate_predicted"][i] if self.predicted else 0))
                item_examined.append(row["candidate_examined"][i] if examined else 0.0)
                title_index.append(title_row[row["candidate_title"][i]])
        real = len(item_id)
        rest = C - real

        def request(name: str, fill: Any, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor([row[name] for row in rows] + [fill] * padding, dtype=dtype)

        def candidate(values: list[Any], fill: Any, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values + [fill] * rest, dtype=dtype)

        f32, i64 = torch.float32, torch.int64
        return SearchBatch(
            request_features=self.request_features(rows),
            candidate_features=self.candidate_features(rows, dict(zip(titles, title_tokens, strict=True))),
            request_id=request("request_id", -1, i64),
            request_weight=torch.tensor([1.0] * len(rows) + [0.0] * padding),
            user_id=request("user_id", 0, i64),
            **{name: request(name, 0, f32) for name in ("user_events", "user_query_events", "query_events")},
            **{name: request(name, statistics, f32) for name in ("user_shown", "user_clicked", "query_shown", "query_clicked")},
            **{
                name: request(name, statistics, f32) if examined else torch.zeros(R, len(statistics))
                for name in ("user_examined", "query_examined", "group_shown", "group_clicked", "group_examined")
            },
            **self.event_fields(rows, "history", ("click", "position")),
            **self.event_fields(rows, "peer", ("click", "position", "in_group"), read="peer" in config.model.reads().sequences),
            **self.history_titles(rows),
            candidate_request=candidate(candidate_request, R - 1, i64),
            candidate_weight=torch.tensor([1.0] * real + [0.0] * rest),
            item_id=candidate(item_id, 0, i64),
            position=candidate(position, 0, i64),
            click=candidate(click, 0, f32),
            click_weight=candidate(click_weight, 0, f32),
            relevance=candidate(relevance, math.nan, f32),
            level=candidate(level, 0, i64),
            candidate_predicted=candidate(predicted, self.probabilities(0), f32),
            item_shown=candidate(shown, 0, f32),
            item_clicked=candidate(clicked, 0, f32),
            item_examined=candidate(item_examined, 0, f32),
            query_tokens=torch.tensor(query_tokens),
            title_tokens=torch.tensor(title_tokens),
            query_index=torch.tensor([query_row[row["query"]] for row in rows] + [0] * padding),
            title_index=candidate(title_index, 0, i64),
        )

    def tokens(self, texts: list[str], width: int) -> list[list[int]]:
        self.tokenizer.enable_truncation(width)
        self.tokenizer.enable_padding(length=width)
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]

    def level(self, grade: float | None) -> int:
        if grade is None:
            return 0
        return 1 + sum(grade > boundary + 1e-6 for boundary in self.config.data.levels.boundaries)

    def probabilities(self, packed: int) -> list[float]:
        return [(packed >> 8 * k & 255) / 128 for k in range(self.config.data.levels.count)]

    def events(self, row: dict[str, Any], name: str) -> list[Any]:
        """The events of a list column that are kept."""
        limit = {"history": self.config.data.history_length, "peer": self.config.data.peer_length}[name.split("_")[0]]
        return row[name][-limit:] if limit else []

    def dense(self, lists: list[list[Any]], width: int, dtype: torch.dtype) -> torch.Tensor:
        """(R, width)."""
        padded = [[*values, *([0] * (width - len(values)))] for values in [*lists, *([[]] * (self.requests - len(lists)))]]
        return torch.tensor(padded, dtype=dtype).reshape(self.requests, width)

    def event_fields(
        self,
        rows: list[dict[str, Any]],
        family: str,
        integers: tuple[str, ...],
        read: bool = True,
    ) -> dict[str, torch.Tensor]:
        """`<family>_lengths`, `_level`, `_age` and those named; without columns where they are not read."""
        if not read:
            none = {f"{family}_{name}": torch.zeros(self.requests, 0, dtype=torch.int64) for name in (*integers, "level")}
            lengths = torch.zeros(self.requests, dtype=torch.int64)
            none[f"{family}_predicted"] = torch.zeros(self.requests, 0, self.config.data.levels.count)
            return none | {f"{family}_age": torch.zeros(self.requests, 0), f"{family}_lengths": lengths}
        width = self.config.data.history_length if family == "history" else self.config.data.peer_length
        levels = [[self.level(grade) for grade in self.events(row, f"{family}_relevance")] for row in rows]
        fields = {"level": self.dense(levels, width, torch.int64)}
        for name in (*integers, "age"):
            lists = [self.events(row, f"{family}_{name}") for row in rows]
            fields[name] = self.dense(lists, width, torch.float32 if name == "age" else torch.int64)
        K = self.config.data.levels.count
        fields["predicted"] = torch.zeros(self.requests, width if self.predicted else 0, K)
        for r, row in enumerate(rows if self.predicted else []):
            for i, packed in enumerate(self.events(row, f"{family}_predicted")):
                fields["predicted"][r, i] = torch.tensor(self.probabilities(packed))
        fields["lengths"] = torch.tensor([len(x) for x in levels] + [0] * (self.requests - len(rows)), dtype=torch.int64)
        return {f"{family}_{name}": tensor for name, tensor in fields.items()}

    def history_titles(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = self.config.text.title_tokens
        if self.config.model.parts.taste is None:
            index = torch.zeros(self.requests, 0, dtype=torch.int64)
            return {"history_title_tokens": torch.zeros(1, width, dtype=torch.int64), "history_title_index": index}
        lists = [self.events(row, "history_title") for row in rows]
        titles = list(dict.fromkeys(title for kept in lists for title in kept)) or [""]
        place = {title: i for i, title in enumerate(titles)}
        index = self.dense([[place[title] for title in kept] for kept in lists], self.config.data.history_length, torch.int64)
        return {"history_title_tokens": torch.tensor(self.tokens(titles, width)), "history_title_index": index}

    def bag(self, tokens: list[int], rows: int) -> list[int]:
        return [token % rows for token in tokens if token not in self.special]

    def ids(self, row: dict[str, Any], name: str, rows: int) -> list[int]:
        values = row[name] if isinstance(row[name], list) else [row[name]]
        if name.startswith(("history_", "peer_")):
            values = self.events(row, name)
        return [mix64(value) % rows for value in values]

    def request_features(self, rows: list[dict[str, Any]]) -> KeyedJaggedTensor:
        keys, values, lengths = [], [], []
        for name, feature in self.config.features.items():
            if feature.table in self.config.bag_tables():
                continue
            keys.append(name)
            for row in rows:
                ids = self.ids(row, name, self.config.tables[feature.table].rows)
                values.extend(ids)
                lengths.append(len(ids))
            lengths.extend([0] * (self.requests - len(rows)))
        return KeyedJaggedTensor(
            keys, torch.tensor(values, dtype=torch.int64), lengths=torch.tensor(lengths, dtype=torch.int64), stride=self.requests
        )

    def candidate_features(self, rows: list[dict[str, Any]], tokens_of: dict[str, list[int]]) -> KeyedJaggedTensor:
        keys, values, lengths = [], [], []
        for name, feature in self.config.features.items():
            if feature.table not in self.config.bag_tables():
                continue
            keys.append(name)
            num_embeddings, count = self.config.tables[feature.table].rows, 0
            for row in rows:
                for i, title in enumerate(row["candidate_title"]):
                    bag = name == "candidate_title_tokens"
                    ids = self.bag(tokens_of[title], num_embeddings) if bag else [mix64(row[name][i]) % num_embeddings]
                    values.extend(ids)
                    lengths.append(len(ids))
                    count += 1
            lengths.extend([0] * (self.candidates - count))
        return KeyedJaggedTensor(
            keys,
            torch.tensor(values, dtype=torch.int64),
            lengths=torch.tensor(lengths, dtype=torch.int64),
            stride=self.candidates,
        )
