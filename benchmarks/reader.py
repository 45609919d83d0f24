"""Candidates a second from Parquet to finished batches on one core.

Beside the reader: (a) a plain Arrow scan of the same columns of the same files, and (b) a torch `DataLoader` whose collate
goes through the rows in Python, with the same tokenizer, and produces the same tensors. Run on one core:

    taskset -c 0 python benchmarks/reader.py [--data PREPARED --config CONFIG] [--runs 3]

Without `--data` it measures on generated samples.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
import torch
from torch.utils.data import DataLoader

from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.run import RunConfig, validate_config
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.training.schedule import passes

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ["TOKENIZERS_PARALLELISM"] = "false"
from per_row import RowCollate, RowDataset
from sample_files import write_samples

ROW_BATCHES = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a prepared folder with a train split")
    parser.add_argument("--config", help="the configuration it was prepared with")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20_000, help="of the generated samples")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config) if arguments.config else default_config()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.data
        if folder is None:
            folder = Path(scratch)
            size = arguments.requests
            write_samples(folder, config.data, requests=size, items=size, queries=size // 6, users=size // 30)
        compare(config, folder, arguments.runs)


def compare(config: RunConfig, folder: Path, runs: int) -> None:
    def new_reader() -> SearchReader:
        return SearchReader(config, folder, "train", folder / TOKENIZER, shuffle=True)

    reader = new_reader()
    columns, paths = reader.columns, sorted((folder / "train").glob("*.parquet"))
    candidates = sum(pq.read_table(path, columns=["num_candidates"])["num_candidates"].to_numpy().sum() for path in paths)
    requests = sum(pq.read_metadata(path).num_rows for path in paths)
    rows = RowDataset(paths, columns, config.batch.requests, config.batch.candidates)
    collate = RowCollate(config, folder / TOKENIZER, config.batch.requests, config.batch.candidates, columns=columns)
    part = sum(int(batch.views["candidate_weight"].sum()) for batch in map(collate, islice(rows, ROW_BATCHES)))

    fresh = [new_reader() for _ in range(runs + 1)]

    def cold() -> None:
        for _ in fresh.pop().epoch(0):
            pass

    def warm() -> None:
        for _ in reader.epoch(0):
            pass

    def scan() -> None:
        for path in paths:
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                file.read_row_group(group, columns=columns, use_threads=False)

    def per_row() -> None:
        for _ in islice(DataLoader(rows, batch_size=None, collate_fn=collate), ROW_BATCHES):
            pass

    contenders = {
        "reader, first epoch": (cold, candidates),
        "reader, later epochs": (warm, candidates),
        "(a) Arrow scan": (scan, candidates),
        "(b) per-row DataLoader": (per_row, part),
    }
    seconds = measure(contenders, runs)
    rates = {name: contenders[name][1] / statistics.median(seconds[name]) for name in contenders}
    epochs = passes(requests)
    first, later = rates["reader, first epoch"], rates["reader, later epochs"]
    rates[f"reader, a job's {epochs} epochs"] = epochs / (1 / first + (epochs - 1) / later)
    print(f"{platform.platform()}, {platform.processor() or platform.machine()}, cores used: {len(os.sched_getaffinity(0))}")
    print(
        f"{datetime.date.today()}, python {platform.python_version()}, torch {torch.__version__}, pyarrow {pa.__version__}, "
        f"tokenizers {tokenizers.__version__}"
    )
    print(
        f"{requests:,} requests, {candidates:,} candidates, {len(columns)} columns; (b) on the first {part:,} candidates; "
        f"CPU time, medians of {runs}"
    )
    print(f"{'':24}{'candidates/s':>14}{'of (a)':>9}{'of (b)':>9}")
    for name, rate in rates.items():
        print(f"{name:24}{rate:14,.0f}{rate / rates['(a) Arrow scan']:9.2f}{rate / rates['(b) per-row DataLoader']:9.1f}")


def measure(contenders: dict[str, tuple[Callable[[], None], int]], runs: int) -> dict[str, list[float]]:
    """CPU seconds of each run; the contenders take turns, so that a slow moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(runs + 1):
        for name, (run, _) in contenders.items():
            start = time.process_time()
            run()
            if turn:  # the first turn warms up
                seconds[name].append(time.process_time() - start)
    return seconds


def default_config() -> RunConfig:
    """The usual features: ids of user, query, item, category and brand, the history's, and bags of title tokens."""
    tables = {"user": 100_000, "query": 100_000, "item": 200_000, "category": 10_000, "brand": 20_000, "token": 10_000}
    sequences = {
        f"{prefix}_{name}": {"table": table, "sequence": prefix}
        for prefix in ("history", "candidate")
        for name, table in (("item_id", "item"), ("category_id", "category"), ("brand_id", "brand"))
    }
    return validate_config(
        {
            "name": "benchmark",
            "tables": {name: {"rows": rows, "dim": 16} for name, rows in tables.items()},
            "features": {
                "user_id": {"table": "user"},
                "query_id": {"table": "query"},
                "history_query_id": {"table": "query", "sequence": "history"},
                **sequences,
                "candidate_title_tokens": {"table": "token"},
            },
        },
        "benchmark",
    )


if __name__ == "__main__":
    main()
