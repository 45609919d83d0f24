"""`prectr prepare`: a raw search log becomes request-major samples, out of core and in steps that a kill cannot spoil.

Each step writes a file or folder under a temporary name and renames it when it is whole, so running again after a kill
redoes only what is missing: check and load the log into DuckDB, sort its events, write the requests of each split, train the
tokenizer, build the shards. `prepared.json` is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from prectr_torchrec.config import DataConfig, TextConfig
from prectr_torchrec.data.events import write_columns, write_order
from prectr_torchrec.data.raw import RawLogError, Source, one_row, quote
from prectr_torchrec.data.samples import Log, Requests, build_rows
from prectr_torchrec.data.schema import MANIFEST, SAMPLE_VERSION, TOKENIZER, sample_schema
from prectr_torchrec.data.tables import PART, load_candidates, load_tables, open_sources

MAX_TEXTS = 2_000_000
"""Queries, and titles, that the tokenizer is trained on at most: every n-th of the distinct ones."""
WORK = "work"
SETTINGS = "settings.json"


def prepare(
    data: DataConfig, text: TextConfig, raw: Path, out: Path, *, candidates: Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Prepares samples from a raw log.

    Args:
        data: what the log's files are and what to make of them.
        text: the vocabulary size of the tokenizer.
        raw: folder of the raw log.
        out: folder to write; may hold an unfinished preparation with the same settings, which is then finished.
        candidates: a file of `request_id, item_id` to build the log's requests with these candidates and no labels, or of
            `query_id, item_id[, relevance]` for queries without users. Writes the split `candidates` alone, no tokenizer.
        progress: shows a bar.

    Returns:
        The manifest, as in `prepared.json`.

    Raises:
        RawLogError: the log cannot be used as it is; names file, column and row.
        ValueError: `out` holds something else.
    """
    raw, out = Path(raw), Path(out)
    with duckdb.connect() as con:
        sources = open_sources(con, data, raw)
    settings = _settings(data, text, sources, candidates)
    if (finished := _claim(out, settings)) is not None:
        return finished
    work = out / WORK
    with tqdm(disable=not progress, unit=" requests", desc="loading the log") as bar:
        report = _prepare_work(data, sources, work, candidates, bar)
        if candidates is None:
            bar.set_description("training the tokenizer")
            _once(out / TOKENIZER, lambda folder: _write_tokenizer(work, folder, text.vocab_size))
        bar.total = sum(split["requests"] for split in report["splits"].values())
        log = Log.open(work)
        for name, split in report["splits"].items():
            bar.set_description(f"writing {name}")
            split["files"] = _write_split(data, log, Requests.open(work / name), out / name, bar)
    manifest = {"version": SAMPLE_VERSION, "digest": _digest(settings), "levels": data.levels.count, **report, "settings": settings}
    _once(out / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1)))
    shutil.rmtree(work)
    return manifest


def _prepare_work(data: DataConfig, sources: dict[str, Source], work: Path, candidates: Path | None, bar: tqdm) -> dict[str, Any]:
    """The steps that need DuckDB; returns what the manifest tells of the log and its splits."""
    _once(work / "log", lambda folder: _load(data, sources, folder, candidates))
    with _connect(data, work, work / "log" / "log.duckdb") as con:
        bar.set_description("sorting events")
        for name, query, options in _orders(data):
            _once(work / name, lambda folder, q=query, o=options: write_order(con, q, folder, **o))  # type: ignore[misc]
        for name in ("items", "queries"):
            _once(work / name, lambda folder, n=name: write_columns(con, f"SELECT * FROM {n} ORDER BY rowid", folder))  # type: ignore[misc]
        report = json.loads((work / "log" / "report.json").read_text())
        splits, boundaries = _splits(con, data, candidates)
        for name, rows in splits.items():
            bar.set_description(f"sorting {name}")
            _once(work / name, lambda folder, r=rows: _write_requests(con, data, r, folder))  # type: ignore[misc]
        described = {name: _describe_split(work / name) for name in splits}
    return {**report, "split_from": boundaries, "splits": described, "max_candidates": max(s["max_candidates"] for s in described.values())}


def _load(data: DataConfig, sources: dict[str, Source], folder: Path, candidates: Path | None) -> None:
    folder.mkdir(parents=True)
    with _connect(data, folder.parent, folder / "log.duckdb") as con:
        report = load_tables(con, data, sources)
        if candidates is not None:
            load_candidates(con, candidates, report["id_kinds"], data.levels, report["dropped"])
        counts = "count(*), count(DISTINCT user_id), count(DISTINCT query), count(DISTINCT item), sum(click)"
        events, users, queries, items, clicks = one_row(con, f"SELECT {counts} FROM events")
        report["counts"] = {"events": events, "users": users, "queries": queries, "items": items, "clicks": int(clicks)}
        report["has_judgments"] = "judgments" in sources
    (folder / "report.json").write_text(json.dumps(report))


def _orders(data: DataConfig) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, query and sorting of each order of the events."""
    levels = data.levels.count + 1
    base = "timestamp, request_id, position, item"
    shown = f"{base}, user_id, query, click, coalesce(relevance, 'nan'::FLOAT) AS relevance"
    kept = "WHERE click = 1" if data.history_events == "clicked" else ""
    yield "by_user", f"SELECT {base}, user_id, click, level FROM events", {"keys": ["user_id"], "levels": levels}
    yield "history", f"SELECT {shown} FROM events {kept}", {"keys": ["user_id"]}
    yield "by_query", f"SELECT {shown}, level FROM events", {"keys": ["query"], "runs": ["user_id"], "levels": levels}
    yield "by_user_query", f"SELECT {base}, user_id, query, click, level FROM events", {"keys": ["user_id", "query"], "levels": levels}
    yield "by_item", f"SELECT {base}, click, 0::TINYINT AS level FROM events", {"keys": ["item"], "levels": 1}
    grouped = "(SELECT e.*, q.group_id FROM events e JOIN queries q ON q.rowid = e.query WHERE q.group_id <> 0)"
    yield "by_group", f"SELECT {shown}, group_id FROM {grouped}", {"keys": ["group_id"], "runs": ["user_id", "query"]}


def _splits(con: duckdb.DuckDBPyConnection, data: DataConfig, candidates: Path | None) -> tuple[dict[str, str], dict[str, int]]:
    """Split -> query for its rows (request columns, part, item, position, click, relevance); and where the splits begin."""
    request = "request_id, timestamp, user_id, query"
    unlabelled = "0::SMALLINT AS position, -1::TINYINT AS click, relevance"
    if candidates is not None:
        return {"candidates": f"SELECT {request}, part, item, {unlabelled} FROM candidates"}, {}
    start, validation, test, end = _boundaries(con, data)
    labelled = f"SELECT {request}, 0 AS part, item, position, click, relevance FROM events"
    judged = "SELECT q.query_id AS request_id, 0 AS timestamp, 0 AS user_id, j.query, item, relevance FROM judgments j JOIN queries q ON q.rowid = j.query"
    return {
        "train": f"{labelled} WHERE timestamp < {validation}",
        "validation": f"{labelled} WHERE timestamp >= {validation} AND timestamp < {test}",
        "test": f"{labelled} WHERE timestamp >= {test}",
        "judgments": f"SELECT {request}, {PART} AS part, item, {unlabelled} FROM ({judged})",
    }, {"train": start, "validation": validation, "test": test, "end": end}


def _boundaries(con: duckdb.DuckDBPyConnection, data: DataConfig) -> tuple[int, int, int, int]:
    """Timestamps where train, validation and test begin, and one past the last request."""
    split = data.split
    first, last, requests = one_row(con, "SELECT min(timestamp), max(timestamp), count(*) FROM requests")

    def latest(fraction: float, end: int) -> int:
        """Where the latest `fraction` of all requests before `end` begins; requests of equal time stay together."""
        before = one_row(con, f"SELECT count(*) FROM requests WHERE timestamp < {end}")[0]
        skipped = min(round(before * (1 - fraction)), before)
        if skipped == before:
            return end
        return int(one_row(con, f"SELECT timestamp FROM requests WHERE timestamp < {end} ORDER BY timestamp LIMIT 1 OFFSET {skipped}")[0])

    test = split.test_from if split.test_from is not None else latest(split.test_fraction, last + 1)
    validation = split.validation_from if split.validation_from is not None else latest(split.validation_fraction, min(test, last + 1))
    if not first < validation <= test:
        raise RawLogError(
            f"data.split leaves no request to train on, or validation after test: validation from {validation}, test from {test}, "
            f"while the log's {requests} requests run from {first} to {last}"
        )
    return first, validation, test, last + 1


def _write_requests(con: duckdb.DuckDBPyConnection, data: DataConfig, rows: str, folder: Path) -> None:
    request = "timestamp, request_id, part"
    attributes = "".join(f", coalesce(u.{quote(a)}, 0) AS {quote('user_' + a.removeprefix('user_'))}" for a in data.user_attributes)
    users = "LEFT JOIN users u USING (user_id)" if data.user_attributes else ""
    counted = f"SELECT request_id, timestamp, user_id, query, part, count(*) AS n FROM ({rows}) GROUP BY ALL"
    ends = f"sum(n) OVER (ORDER BY {request} ROWS UNBOUNDED PRECEDING)::BIGINT AS candidate_ends"
    columns = f"SELECT request_id, timestamp, user_id, query{attributes}, {ends} FROM ({counted}) {users} ORDER BY {request}"
    write_columns(con, columns, folder / "requests")
    candidates = f"SELECT item, position, click, coalesce(relevance, 'nan'::FLOAT) AS relevance FROM ({rows}) ORDER BY {request}, position, item"
    write_columns(con, candidates, folder / "candidates")


def _describe_split(folder: Path) -> dict[str, Any]:
    requests = Requests.open(folder)
    time = requests.columns["timestamp"]
    clicks = requests.candidates["click"]
    return {
        "requests": len(requests),
        "candidates": int(requests.ends[-1]) if len(requests) else 0,
        "max_candidates": int(np.diff(requests.ends, prepend=0).max(initial=0)),
        "clicks": int((clicks == 1).sum()),
        "time": [int(time[0]), int(time[-1])] if len(requests) else None,
    }


def _write_split(data: DataConfig, log: Log, requests: Requests, folder: Path, bar: tqdm) -> list[str]:
    """Writes the shards that are not there yet and returns all their names."""
    folder.mkdir(exist_ok=True)
    names = []
    for first in range(0, len(requests), data.requests_per_shard):
        last = min(first + data.requests_per_shard, len(requests))
        path = folder / f"part-{len(names):05d}.parquet"
        _once(path, lambda temporary, a=first, b=last: _write_shard(data, log, requests, a, b, temporary))  # type: ignore[misc]
        names.append(path.name)
        bar.update(last - first)
    return names


def _write_shard(data: DataConfig, log: Log, requests: Requests, first: int, last: int, path: Path) -> None:
    step = data.requests_per_row_group
    with pq.ParquetWriter(path, sample_schema(data), compression="zstd") as writer:
        for start in range(first, last, step):
            writer.write_table(build_rows(data, log, requests, start, min(start + step, last)), row_group_size=step)


def _write_tokenizer(work: Path, folder: Path, vocab_size: int) -> None:
    from prectr_torchrec.text.tokenizer import train_tokenizer, write_document_frequency

    with duckdb.connect(str(work / "log" / "log.duckdb"), read_only=True) as con:
        queries, titles = (f"SELECT DISTINCT {column} AS text FROM {table}" for table, column in (("queries", "query"), ("items", "title")))
        train_tokenizer((text for query in (queries, titles) for text in _texts(con, query)), folder, vocab_size)
        write_document_frequency(_texts(con, titles), folder)


def _texts(con: duckdb.DuckDBPyConnection, query: str) -> Iterator[str]:
    """Every n-th of the texts in order, MAX_TEXTS at most."""
    every = one_row(con, f"SELECT count(*) // {MAX_TEXTS} + 1 FROM ({query})")[0]
    for batch in con.sql(f"SELECT text FROM ({query}) ORDER BY text").to_arrow_reader(8192):
        yield from batch.column(0).to_pylist()[::every]


def _connect(data: DataConfig, work: Path, database: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB within the memory setting, spilling into the work folder."""
    memory = _bytes(data.memory)
    threads = max(1, min(os.cpu_count() or 1, memory // 2**28))
    con = duckdb.connect(str(database), config={"memory_limit": f"{memory // 2 // 2**20}MiB", "threads": threads, "temp_directory": str(work / "spill")})
    con.execute("SET preserve_insertion_order = true")
    return con


def _bytes(memory: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT])i?B\s*", memory, re.IGNORECASE)
    if not match:
        raise ValueError(f"data.memory: {memory!r} is no size; write it like 2GB or 500MB")
    return int(float(match[1]) * 1024 ** (" KMGT".index(match[2].upper())))


def _settings(data: DataConfig, text: TextConfig, sources: dict[str, Source], candidates: Path | None) -> dict[str, Any]:
    """What the result depends on."""
    files = [file for source in sources.values() for file in source.files] + ([candidates] if candidates else [])
    return {
        "version": SAMPLE_VERSION,
        "data": data.model_dump(mode="json", exclude={"memory"}),
        "text": {"vocab_size": text.vocab_size},
        "files": {str(f.absolute()): {"size": f.stat().st_size, "modified": f.stat().st_mtime_ns} for f in files},
        "candidates": str(candidates.absolute()) if candidates else None,
    }


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _claim(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Makes `out` ours, or returns the manifest of what is already finished there."""
    manifest, begun = out / MANIFEST, out / WORK / SETTINGS
    if manifest.is_file():
        finished = json.loads(manifest.read_text())
        _refuse_other(out, finished.get("settings"), settings)
        shutil.rmtree(out / WORK, ignore_errors=True)
        return finished
    if begun.is_file():
        _refuse_other(out, json.loads(begun.read_text()), settings)
    elif out.exists() and any(path.name != WORK for path in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no prepared samples; choose an empty folder")
    begun.parent.mkdir(parents=True, exist_ok=True)
    _once(begun, lambda path: path.write_text(json.dumps(settings)))
    return None


def _refuse_other(out: Path, there: Any, here: dict[str, Any]) -> None:
    if there == here:
        return
    old, new = _flatten(there, ""), _flatten(here, "")
    differing = [f"{key}: {old.get(key)} there, {new.get(key)} now" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    raise ValueError(f"{out} was prepared from other settings or files; remove it or choose another folder:\n  " + "\n  ".join(differing))


def _flatten(tree: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, value in tree.items() for k, v in _flatten(value, f"{prefix}.{name}" if prefix else name).items()}


def _once(path: Path, build: Callable[[Path], Any]) -> None:
    """Builds a file or folder under a temporary name and renames it: what bears its name is whole."""
    if path.exists():
        return
    temporary = path.with_name(f"{path.name}.partial")
    if temporary.is_dir():
        shutil.rmtree(temporary)
    temporary.unlink(missing_ok=True)
    build(temporary)
    os.replace(temporary, path)
