"""The `evaluate` job: scores a split on every rank, keeps the predictions, and measures them overall and by segment.

    torchrun --nproc-per-node 2 -m prectr_torchrec.evaluation.evaluate -- --run DIR --data DIR [--split test] [--oracle FILE]

Leaves `predictions-<split>.parquet` and `metrics-<split>.json` in the run directory and prints the table. With `--hide-grades`
the model scores as if no candidate had a grade, and the files are `...-<split>-grades-hidden...`; measures still use the grades.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.schema import MANIFEST
from prectr_torchrec.distributed.process import process_group, run_rank
from prectr_torchrec.evaluation import predictions as p
from prectr_torchrec.evaluation.intervals import compare_runs
from prectr_torchrec.evaluation.label_columns import label_columns
from prectr_torchrec.evaluation.measures import measure
from prectr_torchrec.evaluation.measures_text import format_metrics
from prectr_torchrec.evaluation.part_columns import part_columns
from prectr_torchrec.evaluation.prediction_parts import merge_parts, parts_folder, write_part
from prectr_torchrec.evaluation.scoring import default_split, score, scoring_parser
from prectr_torchrec.runs.layout import load_run
from prectr_torchrec.runs.workspace import remove, write_json
from prectr_torchrec.system.locks import file_lock
from prectr_torchrec.system.paths import check_arguments, only_local, unambiguous
from prectr_torchrec.system.plain_files import read_json
from prectr_torchrec.system.progress import Progress


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the job on this rank; `argv` as on the command line."""
    arguments = _parse(argv)
    run, data = arguments.run, arguments.data
    config = load_run(run)
    split = arguments.split or default_split(data)
    train = (arguments.train_data or data) / "train"
    name = f"{split}{p.HIDDEN}" if arguments.hide_grades else split
    predictions = arguments.predictions or run / f"predictions-{name}.parquet"
    output = arguments.metrics or run / f"metrics-{name}.json"
    other = arguments.against / f"predictions-{name}.parquet" if arguments.against else None
    _check_inputs(data / split, train if arguments.train_data else None, arguments.oracle, other)
    with process_group(config.train.device) as process, file_lock(predictions) if process.rank == 0 else nullcontext():
        scored = score(run, data, split, arguments.checkpoint, process, hide_grades=arguments.hide_grades)
        measured = evaluate(
            scored.rows,
            settings=config.data,
            parts=[*label_columns(config.predicted_labels, config.score), *part_columns(scored.ranker.reported)],
            relevance=config.losses.anchor.weight != 0,
            split=data / split,
            train=train,
            predictions=predictions,
            oracle=arguments.oracle,
            grades="hidden" if arguments.hide_grades else "visible",
            rank=process.rank,
            world_size=process.world_size,
        )
    if measured is not None:
        measured = {"run": config.name, "checkpoint": arguments.checkpoint, **measured}
        if other is not None:
            measured["against"] = {"run": arguments.against.name, "labels": compare_runs(predictions, other)}
        write_json(measured, output)
        print(format_metrics(measured))
        print(f"predictions: {predictions}\nmetrics: {output}")


@only_local
def evaluate(
    rows: Iterable[p.Rows],
    *,
    settings: DataConfig,
    parts: Sequence[pa.Field] = (),
    split: Path,
    train: Path,
    predictions: Path,
    oracle: Path | None = None,
    grades: Literal["visible", "hidden"] = "visible",
    relevance: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Any] | None:
    """Writes the predictions of all ranks to one file and measures them; every rank of the process group calls it.

    Args:
        rows: this rank's scored batches (`predictions.Rows`).
        settings: the run's, for its levels and its memory bound.
        parts: `label_columns` and `part_columns` of the rows.
        split: folder of the samples that are scored.
        train: folder of the training samples, to say which graded pairs were trained on; may be missing.
        predictions: the Parquet file to write, on a file system that all ranks see.
        oracle: Parquet with request_id, item_id, probability and optionally those of `predictions.ORACLE_OPTIONAL`.
        grades: whether what scored the rows could see the candidates' grades; goes into the metrics.
        relevance: whether the relevance tower was trained; the figures of one that was not would say nothing, and are left out.

    Returns:
        The metrics on rank 0, None on the others.

    Raises:
        ValueError: a file that cannot be used, or predictions that are not finite.
    """
    predictions.parent.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        remove(parts_folder(predictions))
    _barrier(world_size)
    write_part(_with_progress(rows, split, rank, world_size), predictions, rank, parts)
    _barrier(world_size)
    if rank != 0:
        return None
    merge_parts(predictions, split, world_size, settings.memory)
    measured = measure(predictions, split=split, train=train, oracle=oracle, levels=settings.levels, memory=settings.memory)
    if not relevance:
        measured["relevance"] = {}
    return {"grades": grades, **measured}


def _check_inputs(split: Path, train: Path | None, oracle: Path | None, other: Path | None) -> None:
    """Finds what is missing before hours of scoring."""
    if other and not other.is_file():
        raise FileNotFoundError(f"{other}: no such predictions to compare with; run `prectr evaluate` with that run first")
    p.sample_files(split)
    if train:
        p.sample_files(train)
    if oracle:
        p.oracle_columns(oracle)


def _with_progress(rows: Iterable[p.Rows], split: Path, rank: int, world_size: int) -> Iterator[p.Rows]:
    """The time left is that of rank 0, as if ranks had as many rows each."""
    manifest = split.parent / MANIFEST
    splits = read_json(manifest).get("splits", {}) if manifest.exists() else {}
    total = splits[split.name]["candidates"] // world_size if split.name in splits else None
    with Progress("scoring", total=total, unit="rows", shown=rank == 0) as bar:
        for batch in rows:
            yield batch
            bar.update(len(batch["request_id"]))


def _barrier(world_size: int) -> None:
    if world_size > 1:
        dist.barrier()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = scoring_parser("evaluate", "Scores a split with a trained run and measures it.")
    parser.add_argument(
        "--predictions", type=unambiguous, help="Parquet file to write; default: predictions-<split>.parquet in the run"
    )
    parser.add_argument("--metrics", type=unambiguous, help="JSON file to write; default: metrics-<split>.json in the run")
    optional = ", ".join(p.ORACLE_OPTIONAL)
    parser.add_argument("--oracle", type=unambiguous, help=f"Parquet with request_id, item_id, probability[, {optional}]")
    parser.add_argument(
        "--train-data",
        type=unambiguous,
        help="prepared folder whose train and judgments splits say what was trained on; default: --data",
    )
    parser.add_argument("--against", type=unambiguous, help="another run that scored the same split: differences with intervals")
    parser.add_argument("--hide-grades", action="store_true", help="score as if no candidate of the split had a grade")
    check_arguments(argv)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_rank(main)
