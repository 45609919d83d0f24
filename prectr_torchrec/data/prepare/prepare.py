"""`prectr prepare`: a raw search log becomes request-major samples, out of core and in steps that a kill cannot spoil.

The steps: check the log and load it into DuckDB, sort its events and its requests into column files, train the tokenizer (or
take that of `text.path`), build the shards. Each writes under a temporary name and renames, so that running again redoes only
what is missing. `prepared.json` is written last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prectr_torchrec.config.columns import LabelColumn, TextColumn
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.columns import CLICK_KNOWN, SAMPLE_WEIGHT, Table, declared_columns, declared_of
from prectr_torchrec.data.item_vectors import ITEM_VECTORS, item_vectors
from prectr_torchrec.data.log_ids import IDS, write_ids
from prectr_torchrec.data.pairs.new_queries import find_new_queries
from prectr_torchrec.data.parquet_files import WRITTEN
from prectr_torchrec.data.prepare.events import write_columns, write_order
from prectr_torchrec.data.prepare.examination import estimate_examination
from prectr_torchrec.data.prepare.orders import event_orders
from prectr_torchrec.data.prepare.quantiles import learn_numbers
from prectr_torchrec.data.prepare.sample_rows import Log, Requests, build_rows
from prectr_torchrec.data.prepare.splits import find_trained, in_train, split_times
from prectr_torchrec.data.prepare.summary import summarise
from prectr_torchrec.data.prepare.trained import write_trained
from prectr_torchrec.data.raw.actions import labels_of_actions
from prectr_torchrec.data.raw.files import given_files
from prectr_torchrec.data.raw.labels import events_in_windows
from prectr_torchrec.data.raw.predicted import find_scores
from prectr_torchrec.data.raw.search_results import shown_items
from prectr_torchrec.data.raw.source import Connection, Source, one_row, open_duckdb, quote
from prectr_torchrec.data.raw.tables import PART, Kinds, load_candidates, load_tables, open_sources
from prectr_torchrec.data.raw.versions import VERSION
from prectr_torchrec.data.schema import MANIFEST, SAMPLE_VERSION, TOKENIZER, sample_schema, sample_settings
from prectr_torchrec.data.tokens import tokenizer_digest
from prectr_torchrec.runs.workspace import build_if_absent, digest, open_output
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.locks import writes_folder
from prectr_torchrec.system.paths import check_database, only_local
from prectr_torchrec.system.plain_files import read_json
from prectr_torchrec.system.progress import Progress
from prectr_torchrec.system.sizes import parse_bytes

BLOCK = 2**20
SPLITS = ("train", "validation", "test", "judgments", "candidates")
_PARTS = (*SPLITS, TOKENIZER, IDS, ITEM_VECTORS)
"""Folders of a prepared folder."""
MAX_TEXTS = 500_000
"""Queries, and texts of items, that the tokenizer is trained on at most: every n-th of the distinct ones."""


@only_local
@writes_folder("out")
def prepare(
    data: DataConfig,
    text: TextConfig,
    raw: Path,
    out: Path,
    *,
    candidates: Path | None = None,
    relevance: Sequence[Path] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Prepares samples from a raw log.

    Args:
        data: what the log's files are and what to make of them.
        text: the vocabulary size of the tokenizer, or `path`, a folder to take it from; document frequencies are the log's own.
        raw: folder of the raw log.
        out: folder to write; may hold an unfinished preparation with the same settings, which is then finished.
        candidates: a file or glob of `request_id, item_id`: builds the log's requests with these candidates and no labels;
            or of `query_id, item_id[, relevance]`: queries without users. Writes the split `candidates` alone, no tokenizer.
        relevance: folders of `prectr teach`, averaged: predicted levels of the pairs without a grade, for history, counters and
            candidates.
        progress: shows progress bars.

    Returns:
        The manifest, as in `prepared.json`: `splits` (requests, those of known users, candidates, graded ones, clicks, those with
        each label, time and files of each), `summary` (as of `summarise`), `max_candidates`, `new_queries` (`queries` that are
        not searched in the train part but later, and their `judgments`, which are in no split; not with `candidates`), `left_out`
        and `mean_weight` (as of `find_trained`), `counts`, `dropped`, `rows` of the raw files, `id_kinds` (`integer`, `unsigned`
        or `text`), `by_query` (splits whose requests have their query's id), `levels` (K), `split_from`, `examination` (of
        positions 1, 2, ...; deeper ones share the last), `numbers` (as of `learn_numbers`), `level_grades` (the mean of each
        level's judgments, or None), `zeros` (rows of ids written as 0, where that stands for none), `mended` (rows by what was
        wrong), `positions_from`, `mixed_ids` (CSV columns of ids that few values make text of), and the `settings`.

    Raises:
        RawLogError: the log cannot be used as it is; names file, column and row.
        ValueError: soft grades of other levels, or unfinished; `out` holds something else, or `data.memory` is too little.
    """
    raw, out = Path(raw), Path(out)
    check_database(out)
    if data.effects:
        raise ConfigError("data.effects: preparation makes no sums of effects; `prectr effects` adds them to prepared samples")
    given = given_files("candidates", Path(candidates)) if candidates else ()
    with open_duckdb() as con:
        sources = open_sources(con, data, raw)
    scores = find_scores(relevance, data.levels)
    settings = _settings(data, text, sources, given, scores)
    if (finished := open_output(out, out / "work", out / MANIFEST, settings, parts=_PARTS)) is not None:
        return finished
    job = _Job(data, text, sources, given, scores, out, out / "work")
    total = len(event_orders(data)) + 11 + bool(item_vectors(data))
    steps = Progress("preparing", unit="steps", total=total, shown=progress)
    with steps as bar, enough_memory(data.memory):
        report = job.sort(bar)
    splits = report["splits"]
    with Progress("writing", total=sum(s["requests"] for s in splits.values()), unit="requests", shown=progress) as bar:
        job.write(splits, bar)
    manifest = {"version": SAMPLE_VERSION, "digest": digest(settings), **report, "settings": settings}
    build_if_absent(out / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1), encoding="utf-8"))
    shutil.rmtree(job.work)
    return manifest


@dataclass(frozen=True)
class _Job:
    data: DataConfig
    text: TextConfig
    sources: dict[str, Source]
    candidates: tuple[Path, ...]
    scores: tuple[Path, ...]
    out: Path
    work: Path

    def sort(self, bar: Progress) -> dict[str, Any]:
        """All steps before the shards; returns what the manifest tells of the log and its splits."""

        def step(title: str, path: Path, build: Callable[[Path], Any]) -> None:
            bar.set_description(title)
            build_if_absent(path, build)
            bar.update()

        step("checking and loading the log", self.work / "log", self._load)
        with self._connect(self.work / "log" / "log.duckdb") as con:
            step("estimating examination", self.work / "examination.json", partial(self._write_examination, con))
            examination = read_json(self.work / "examination.json", list[float])
            report = read_json(self.work / "log" / "report.json")
            step("keeping ids of text", self.out / IDS, partial(self._write_ids, con, report["id_kinds"]))
            common = {"levels": self.data.levels.count, "examination": examination}
            for name, order in event_orders(self.data).items():
                options = {**order, **common}
                step(f"sorting events {name}", self.work / name, partial(write_order, con, **options))
            kept = item_vectors(self.data)
            apart = [column.source.stored for column, _ in kept]
            for name, table in (("items", self._items), ("queries", "queries")):
                columns = f"* EXCLUDE ({', '.join(apart)})" if apart and name == "items" else "*"
                selected = f"SELECT {columns} FROM {table} ORDER BY rowid"
                step(f"sorting {name}", self.work / name, partial(write_columns, con, selected))
            if kept:
                step("keeping vectors of items", self.out / ITEM_VECTORS, partial(self._write_item_vectors, con))
            splits, split_findings = self._splits(con, report["id_kinds"])
            begins = split_findings["split_from"]
            trained = in_train(self.data, begins) if begins else "false"
            step("counting the train part", self.work / "trained", partial(write_trained, con, self.data, trained))
            for name, rows in splits.items():
                step(f"sorting {name}", self.work / name, partial(self._write_requests, con, rows))
            if not self.candidates:
                step("training the tokenizer", self.out / TOKENIZER, partial(self._write_tokenizer, con))
        described = {name: _describe_split(self.work / name, self.data) for name in splits}
        numbers = learn_numbers(self.data, self.work, self.out / ITEM_VECTORS) if "train" in splits else {}
        return {
            **report,
            "levels": self.data.levels.count,
            **split_findings,
            "examination": examination,
            "numbers": numbers,
            "max_candidates": max(split["max_candidates"] for split in described.values()),
            "splits": described,
        }

    def write(self, splits: dict[str, dict[str, Any]], bar: Progress) -> None:
        """Writes the shards of all splits and notes their names as `files`."""
        log = Log.open(self.work, self.data)
        for name, split in splits.items():
            bar.set_description(f"writing {name}")
            split["files"] = self._write_split(log, name, bar)

    def _write_split(self, log: Log, name: str, bar: Progress) -> list[str]:
        """Writes the shards that are not there yet and returns all their names."""
        requests, folder = Requests.open(self.work / name), self.out / name
        names: list[str] = []
        folder.mkdir(exist_ok=True)
        for first in range(0, len(requests), self.data.requests_per_shard):
            last = min(first + self.data.requests_per_shard, len(requests))
            names.append(f"part-{len(names):05d}.parquet")
            build_if_absent(folder / names[-1], partial(self._write_shard, log, requests, first, last))
            bar.update(last - first)
        return names

    @property
    def _items(self) -> str:
        """The table with all rows of items."""
        return "item_versions" if self.data.valid_from else "items"

    def _load(self, folder: Path) -> None:
        folder.mkdir()
        with self._connect(folder / "log.duckdb") as con:
            report = load_tables(con, self.data, self.sources, self.scores)
            report["by_query"] = ["judgments"]
            if self.candidates:
                key = load_candidates(con, self.candidates, report["id_kinds"], self.data, report["dropped"])
                report["by_query"] = ["candidates"] if key == "query_id" else []
            seen = {"users": "user_id", "queries": "query", "items": "item"}
            tables = {name: f"(SELECT DISTINCT {column} FROM events)" for name, column in seen.items()}
            tables["users"] = "(SELECT DISTINCT user_id FROM events WHERE user_id <> 0)"
            tables |= {"events": "events", "requests": "requests"}
            report["counts"] = {name: one_row(con, f"SELECT count(*) FROM {table}")[0] for name, table in tables.items()}
            report["summary"] = summarise(con, self.data, self.sources, report["rows"])
            report["predicted"] = bool(self.scores)
            report["simulated"] = _is_simulated(shown_items(self.sources))
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")

    def _write_ids(self, con: Connection, kinds: Kinds, folder: Path) -> None:
        write_ids(con, self.sources, kinds, self.data.zero_id, folder)

    def _write_item_vectors(self, con: Connection, folder: Path) -> None:
        columns = item_vectors(self.data)
        selected = "".join(f", {column.source.stored} AS {quote(column.key)}" for column, _ in columns)
        dtypes = {column.key: settings.dtype for column, settings in columns}
        write_columns(con, f"SELECT item_id{selected} FROM items ORDER BY rowid", folder, dtypes=dtypes)

    def _write_examination(self, con: Connection, path: Path) -> None:
        examination = self.data.examination
        if examination is None:
            before = split_times(con, self.data)["validation"]
            examination = estimate_examination(con, before, self.data.levels.count, known=CLICK_KNOWN if self.data.late else None)
        path.write_text(json.dumps(examination), encoding="utf-8")

    def _splits(self, con: Connection, kinds: Kinds) -> tuple[dict[str, str], dict[str, Any]]:
        """Split -> query for its rows (request columns, part, the columns of `_write_requests`); and what the manifest tells of
        where they begin and what is left out of them."""
        request = "request_id, timestamp, user_id, query"
        weight = f", 1::FLOAT AS {SAMPLE_WEIGHT}" if self.data.weighted else ""
        late = f", {CLICK_KNOWN}" if self.data.late else ""
        never = f", 0::BIGINT AS {CLICK_KNOWN}" if self.data.late else ""
        version = f", {VERSION}" if self.data.valid_from else ""
        unlabelled = f"item, 0::SMALLINT AS position, -1::TINYINT AS click, relevance, predicted{weight}{never}{version}"
        if self.candidates:
            declared = self._declared("requests", "events")
            return {"candidates": f"SELECT {request}, part, {unlabelled}{declared} FROM candidates"}, {"split_from": {}}
        begins = split_times(con, self.data)
        split_findings = {"split_from": begins, "new_queries": find_new_queries(con, in_train(self.data, begins))}
        declared = self._declared("requests", "events")
        kept = f"{declared}{late}{version}"
        labelled = f"SELECT {request}, 0 AS part, item, position, click, relevance, predicted{kept}{{weight}} FROM"
        acted = labels_of_actions(self.data, shown_items(self.sources))
        known, final = (events_in_windows(self.data, acted, until) for until in (begins["validation"], None))
        unlabelled += self._declared("requests", "events", null=True)
        judged = "SELECT q.query_id AS request_id, 0 AS timestamp, 0 AS user_id, j.*, 0::BIGINT AS predicted"
        judged += f", (SELECT last_version FROM items WHERE rowid = j.item) AS {VERSION} " if version else " "
        judged += "FROM judgments j JOIN queries q ON q.rowid = j.query ANTI JOIN new_queries n ON n.query = j.query"
        trained = find_trained(con, self.data, known, begins, kinds["request_id"])
        split_findings |= trained.findings
        evaluated = f"{labelled.format(weight=weight)} {final}"
        return {
            "train": f"{labelled.format(weight=trained.weight)} {trained.rows}",
            "validation": f"{evaluated} WHERE timestamp >= {begins['validation']} AND timestamp < {begins['test']}",
            "test": f"{evaluated} WHERE timestamp >= {begins['test']}",
            "judgments": f"SELECT {request}, {PART} AS part, {unlabelled} FROM ({judged})",
        }, split_findings

    def _declared(self, *tables: Table, null: bool = False) -> str:
        """SQL of declared columns as they are, or null, behind others."""
        return "".join(f", {f'{c.kind.missing} AS ' * null}{c.source.stored}" for c in declared_columns(self.data, *tables))

    def _write_requests(self, con: Connection, rows: str, folder: Path) -> None:
        order = "timestamp, request_id, part"
        shared = "".join(f", max({c.source.stored}) AS {c.source.stored}" for c in declared_columns(self.data, "requests"))
        counted = f'SELECT {order}, user_id, query{shared}, count(*) AS "candidate#length" FROM ({rows}) GROUP BY ALL'
        users = declared_columns(self.data, "users")
        added = [f"coalesce(u.{c.source.stored}, {c.kind.missing}) AS {c.source.stored}" for c in users]
        if added:
            counted = f"SELECT c.*, {', '.join(added)} FROM ({counted}) c LEFT JOIN users u USING (user_id)"
        write_columns(con, f"{counted} ORDER BY {order}", folder / "requests")
        columns = "item, position, click, coalesce(relevance, 'nan'::FLOAT) AS relevance, predicted" + self._declared("events")
        columns += f", {SAMPLE_WEIGHT}" * self.data.weighted + f", {CLICK_KNOWN}" * self.data.late
        columns += f", {VERSION}" * bool(self.data.valid_from)
        write_columns(con, f"SELECT {columns} FROM ({rows}) ORDER BY {order}, position, item", folder / "candidates")

    def _write_shard(self, log: Log, requests: Requests, first: int, last: int, path: Path) -> None:
        step = self.data.requests_per_row_group
        schema = sample_schema(self.data, predicted=bool(self.scores))
        with pq.ParquetWriter(path, schema, **WRITTEN) as writer:
            for start in range(first, last, step):
                writer.write_table(build_rows(self.data, log, requests, start, min(start + step, last)), row_group_size=step)

    def _write_tokenizer(self, con: Connection, folder: Path) -> None:
        from prectr_torchrec.data.tokenizer import load_tokenizer, train_tokenizer, write_document_frequency

        queries, titles = "SELECT DISTINCT query AS text FROM queries", f"SELECT DISTINCT title AS text FROM {self._items}"
        if further := [column.source.stored for column, _ in declared_of(self.data, TextColumn)]:
            of_items = " UNION ALL ".join(f"SELECT {name} AS text FROM {self._items}" for name in ("title", *further))
            titles = f"SELECT DISTINCT text FROM ({of_items})"
        if self.text.path is None:
            train_tokenizer((text for query in (queries, titles) for text in _texts(con, query)), folder, self.text.vocab_size)
        else:
            load_tokenizer(Path(self.text.path)).save_pretrained(str(folder))
        write_document_frequency(_texts(con, titles), folder)

    def _connect(self, database: Path) -> Connection:
        return open_database(database, self.data.memory, self.work / "spill")


def open_database(database: Path, memory: str, spill: Path) -> Connection:
    """DuckDB within half of the memory setting, spilling into a folder; the other half is for what reads from it."""
    size = parse_bytes(memory, "data.memory")
    threads = max(1, min(os.cpu_count() or 1, size // 2**28))
    options: dict[str, Any] = {"memory_limit": f"{size // 2**21}MiB", "threads": threads, "temp_directory": str(spill)}
    check_database(database)
    return open_duckdb(str(database), **options)


@contextlib.contextmanager
def enough_memory(memory: str) -> Iterator[None]:
    """Says which setting to raise where DuckDB runs out of memory."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise ValueError(f"data.memory: {memory} is too little for this log; {str(error).splitlines()[0]}") from None


def _settings(
    data: DataConfig, text: TextConfig, sources: dict[str, Source], candidates: tuple[Path, ...], scores: tuple[Path, ...]
) -> dict[str, Any]:
    """What the result depends on: everything but how much memory making it may take."""
    files = [file for source in sources.values() for file in source.files]
    return {
        "version": SAMPLE_VERSION,
        "data": sample_settings(data),
        "text": {"vocab_size": text.vocab_size} if text.path is None else {"tokenizer": tokenizer_digest(Path(text.path))},
        "files": {str(file.absolute()): _stamp(file) for file in files},
        "candidates": {str(file.absolute()): _stamp(file) for file in candidates},
        "relevance": {str(file.absolute()): _stamp(file) for file in scores},
    }


def _is_simulated(impressions: Source) -> bool:
    """Whether the log's files say of themselves that they are simulated."""
    file = impressions.files[0]
    return file.suffix == ".parquet" and (pq.read_schema(file).metadata or {}).get(b"simulated") == b"true"


def _stamp(file: Path) -> dict[str, int]:
    return {"size": file.stat().st_size, "modified": file.stat().st_mtime_ns}


def _describe_split(folder: Path, data: DataConfig) -> dict[str, Any]:
    """Counts of a split, block by block, since a split need not fit into memory."""
    requests = Requests.open(folder)
    time, clicks, ends = requests.columns["timestamp"], requests.candidates["click"], requests.ends
    grades, users = requests.candidates["relevance"], requests.columns["user_id"]
    labels = {column.source.column: requests.candidates[column.source.stored] for column, _ in declared_of(data, LabelColumn)}
    longest = [int(np.diff(ends[max(first - 1, 0) : first + BLOCK]).max(initial=0)) for first in range(0, len(ends), BLOCK)]
    return {
        "requests": len(requests),
        "candidates": len(clicks),
        "max_candidates": max([*longest, *map(int, ends[:1])], default=0),
        "clicks": _count_ones(clicks),
        "labels": {name: _count_ones(values) for name, values in labels.items()},
        "graded": sum(int((~np.isnan(grades[first : first + BLOCK])).sum()) for first in range(0, len(grades), BLOCK)),
        "known_users": sum(int((users[first : first + BLOCK] != 0).sum()) for first in range(0, len(users), BLOCK)),
        "time": [int(time[0]), int(time[-1])] if len(time) else None,
    }


def _count_ones(values: NDArray[np.int8]) -> int:
    return sum(int((values[first : first + BLOCK] == 1).sum()) for first in range(0, len(values), BLOCK))


def _texts(con: Connection, query: str) -> Iterator[str]:
    """Every n-th of the texts in order, MAX_TEXTS at most."""
    every = one_row(con, f"SELECT count(*) // {MAX_TEXTS} + 1 FROM ({query})")[0]
    for batch in con.sql(f"{query} ORDER BY text").to_arrow_reader(8192):
        yield from batch.column(0).to_pylist()[::every]
