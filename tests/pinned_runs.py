"""What is pinned, measured: samples of a small simulated log, and what small runs of the shipped configurations make of them.

Sizes are shrunk, so that all of it costs about a minute; nothing else of a configuration is changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pair_files import write_teacher_scores
from ranks import run_ranks
from serving_requests import plain_requests
from small_job import quality, run_small_job

from prectr_torchrec import Ranker
from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.pairs.pairs import PairsFile, write_pairs
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.data.simulate.simulate import simulate
from prectr_torchrec.data.tokens import tokenizer_digest
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.serving.export import export
from prectr_torchrec.text.distill import distill
from prectr_torchrec.training.trainer import Trainer

STEPS = 50
ON_TWO_RANKS = ("prectr_v2", "prectr_v1", "din")
SCORED = "prectr_v2"
"""The run whose predictions and exported scores are pinned."""
SIZES = [
    "data.history_length=20",
    "data.peer_length=10",
    "text.vocab_size=400",
    "text.encoder.hidden_size=16",
    "text.encoder.num_hidden_layers=1",
    "text.encoder.num_attention_heads=2",
    "text.encoder.intermediate_size=16",
    "batch.candidates=112",
    "train.log_every=1",
    "train.validation=false",
    "distill.batch_size=64",
    "distill.warmup_steps=5",
    "distill.log_every=1",
]
ROWS = 2_000
"""Rows of a table at most."""
STRANGER: dict[str, Any] = {
    "query": "red lamp",
    "candidates": [{"item_id": 1, "title": "red oak lamp"}, {"item_id": 2, "title": "blue steel sofa"}, {"item_id": 3}],
}
"""A request of which nothing is known."""


def shipped() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(
        Path(str(path)).stem for path in resources.files("prectr_torchrec.configs").iterdir() if path.name.endswith(".yaml")
    )


def shrunk(name: str, data: Path, ranks: int = 1) -> RunConfig:
    """A shipped configuration at the sizes of the pins: 8 requests a step over all ranks, two epochs of the last stage."""
    config = load_config(name)
    rows = [f"tables.{table}.rows={min(ROWS, settings.rows)}" for table, settings in config.tables.items()]
    epochs = f"train.stages.{len(config.train.stages) - 1}.epochs=2"
    student = [f"text.path={data / 'student'}"] if config.text.path else []
    return load_config(name, [*SIZES, *rows, epochs, *student, f"batch.requests={8 // ranks}"])


def prepare_small(data: Path) -> None:
    """Leaves `log`, `samples`, and `pairs.parquet` with soft grades in `scores`."""
    meta = simulate(data / "log", requests=250, users=30, queries=24, items=160)
    config = shrunk(SCORED, data)
    config.data.split.test_from = meta["test_from_timestamp"]
    prepare(config.data, config.text, data / "log" / "raw", data / "samples", progress=False)
    write_pairs(config.data, shrunk("student", data).pairs, data / "log" / "raw", data / "pairs.parquet")
    pairs = PairsFile.open(data / "pairs.parquet").read()
    grades = pairs["relevance"].fill_null(1.5)
    write_teacher_scores(data / "scores", pairs.append_column("true", grades))


def samples(data: Path) -> dict[str, Any]:
    """Digests of the columns by split; of columns of fractions, whose last digit is a processor's own, the mean."""
    found: dict[str, Any] = {"tokenizer": tokenizer_digest(data / "samples" / TOKENIZER)}
    for split in ("train", "validation", "test", "judgments"):
        table = _read(data / "samples" / split)
        columns = {name: _flat(column) for name, column in zip(table.column_names, table.columns, strict=True)}
        fractions = [name for name, column in columns.items() if pa.types.is_floating(column.type)]
        found[split] = {
            "requests": len(table),
            "digests": {name: _digest(table[name]) for name in columns if name not in fractions},
            "means": {name: _mean(columns[name]) for name in fractions},
            "bits": {name: _digest(table[name]) for name in fractions},
        }
    return found


def distillation(data: Path, process: Process) -> dict[str, list[float]]:
    """Distils the student of the shipped configuration into `student`; returns the first losses of both stages."""
    config, tokenizer = shrunk("student", data), data / "samples" / TOKENIZER
    taught = [data / "scores"]
    distill(config, data / "pairs.parquet", data / "student", process, teacher_scores=taught, tokenizer=tokenizer)
    lines = [line for line in _lines(data / "student") if "loss" in line]
    return {stage: [line["loss"] for line in lines if line["stage"] == stage][:20] for stage in ("teacher", "grades")}


def losses(name: str, data: Path, runs: Path, process: Process) -> list[float]:
    """The first losses of a run, the mean over the ranks."""
    Trainer(shrunk(name, data, process.world_size), data / "samples", runs / name, process).train()
    return [line["loss"] for line in _lines(runs / name) if "loss" in line][:STEPS]


def train_on_ranks(data: str, runs: str) -> None:
    """On each rank: trains those of `ON_TWO_RANKS`; leaves their losses in `losses.json`."""
    with process_group("cpu") as process:
        found = {name: losses(name, Path(data), Path(runs), process) for name in ON_TWO_RANKS}
        if process.rank == 0:
            (Path(runs) / "losses.json").write_text(json.dumps(found), encoding="utf-8")


def predictions(data: Path, run: Path) -> dict[str, Any]:
    """Of the test split: the means of the columns, and the first rows' click probabilities."""
    evaluate(["--run", str(run), "--data", str(data / "samples"), "--checkpoint", "last"])
    table = pq.read_table(run / "predictions-test.parquet")
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return {
        "rows": len(table),
        "means": {name: _mean(column) for name, column in columns.items() if pa.types.is_floating(column.type)},
        "levels": np.mean(table["relevance_probabilities"].to_pylist(), axis=0).tolist(),
        "click_probability": table["click_probability"].to_pylist()[:30],
        "bits": {name: _digest(column) for name, column in columns.items()},
    }


def scores(data: Path, run: Path) -> dict[str, Any]:
    """Of the exported ranker: click probability and level distribution of the candidates of a few requests."""
    export(run, run / "exported", checkpoint="last")
    ranker = Ranker.load(run / "exported")
    requests = [*plain_requests(_read(data / "samples" / "test"))[:4], STRANGER]
    scored = [ranker.score(request) for request in requests]
    return {
        name: {"click_probability": s.click_probability.tolist(), "relevance_probabilities": s.relevance_probabilities.tolist()}
        for name, s in zip(("first", "second", "third", "fourth", "stranger"), scored, strict=True)
    }


def measure(folder: Path) -> dict[str, dict[str, Any]]:
    """Everything but `quality` (of a job that `test_end_to_end` runs), by the name of its file of pins."""
    prepare_small(folder)
    run = folder / "runs" / SCORED
    with process_group("cpu") as process, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found: dict[str, dict[str, Any]] = {"samples": samples(folder), "distillation": distillation(folder, process)}
        found["losses"] = {name: losses(name, folder, folder / "runs", process) for name in shipped()}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found["predictions"] = {SCORED: predictions(folder, run)}
    found["scores"] = scores(folder, run)
    (folder / "two").mkdir()
    run_ranks(2, "pinned_runs:train_on_ranks", data=folder, runs=folder / "two")
    found["losses_on_two_ranks"] = json.loads((folder / "two" / "losses.json").read_text(encoding="utf-8"))
    return found


def measure_quality(folder: Path) -> dict[str, float]:
    """Runs the job of `test_end_to_end` for its quality."""
    run_small_job(folder)
    return quality(folder)


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
    return column


def _mean(column: pa.ChunkedArray) -> float | None:
    values = column.drop_null().to_numpy().astype(np.float64)
    return float(values.mean()) if len(values) else None


def _digest(column: pa.ChunkedArray) -> str:
    return hashlib.sha256(repr(column.to_pylist()).encode()).hexdigest()[:16]
