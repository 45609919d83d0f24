"""Scores of a trained run over a prepared split, sharded over ranks as training is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from prectr_torchrec.checkpoints.manager import Checkpoints
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.score import Worth, multiplied
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader, agree_on_batches
from prectr_torchrec.data.schema import TOKENIZER, check_findings, load_manifest, read_manifest
from prectr_torchrec.distributed.process import Process
from prectr_torchrec.evaluation.label_columns import each_worth, expected_worth, worth_columns
from prectr_torchrec.evaluation.part_columns import part_values
from prectr_torchrec.evaluation.predictions import Rows
from prectr_torchrec.modules import RankingModel, ReportedPart
from prectr_torchrec.runs.layout import CONFIG, load_run
from prectr_torchrec.system.paths import unambiguous
from prectr_torchrec.training.sharded import build_sharded, evaluate_batches
from prectr_torchrec.training.task import StepReport


def default_split(data: Path) -> str:
    """What is scored where no split is named: `test`, or `candidates` where there is no test."""
    return "test" if (data / "test").is_dir() else "candidates"


def scoring_parser(command: str, description: str) -> argparse.ArgumentParser:
    """With the arguments of every job that scores a split of a prepared folder with a run."""
    parser = argparse.ArgumentParser(prog=f"prectr {command}", description=description)
    parser.add_argument("--run", type=unambiguous, required=True, help="run directory")
    parser.add_argument("--data", type=unambiguous, required=True, help="prepared folder with the split")
    parser.add_argument("--split", help="default: test, or candidates where there is no test")
    parser.add_argument("--checkpoint", default="best", help="best, last, or the name of one that is kept")
    return parser


class OpenedSplit(NamedTuple):
    """A split, and the trained model that scores it."""

    config: RunConfig
    """The run's."""
    model: DistributedModelParallel
    """Of a `RankingTask`."""
    batches: Iterator[tuple[SearchBatch, StepReport]]
    """This rank's share, scored when they are asked for; collective."""


def open_split(run: Path, data: Path, split: str, checkpoint: str, process: Process) -> OpenedSplit:
    """Loads a run's checkpoint and opens a split for it, after checking that they fit; collective. Arguments as of `score`."""
    config = load_run(run)
    largest = int(read_manifest(data, config.data, run / CONFIG)["max_candidates"])
    check_findings(data, run, load_manifest(run))
    checkpoints = Checkpoints(run)
    checkpoints.check(checkpoints.path(checkpoint))  # what the model is built of is checked too
    model, optimizers, _ = build_sharded(config, run, process)
    checkpoints.load(checkpoint, {"model": model})
    reader = SearchReader(
        config,
        data,
        split,
        run / TOKENIZER,
        rank=process.rank,
        world_size=process.world_size,
        candidates=max(config.batch.candidates, largest),
    )
    pipeline = TrainPipelineSparseDist(model, optimizers.combined, process.device)
    return OpenedSplit(config, model, evaluate_batches(pipeline, model, reader, agree_on_batches(reader.num_batches(0))))


class Scored(NamedTuple):
    """A split, scored with a ranker."""

    ranker: RankingModel
    """It reports of each candidate."""
    rows: Iterator[Rows]
    """This rank's share, a batch at a time; collective."""


def score(run: Path, data: Path, split: str, checkpoint: str, process: Process, *, hide_grades: bool = False) -> Scored:
    """Scores this rank's share of a split; collective.

    Args:
        run: run directory.
        data: prepared folder.
        split: its split.
        checkpoint: as of `runs.checkpoint_path`.
        process: this rank.
        hide_grades: the model scores as if no candidate had a grade, given or predicted; what is yielded has them still.

    Returns:
        Rows as of `predictions.Rows`, and with `logit` (n,) float32, the position at its reference, and `position` (n,) int64.
    """
    config, model, batches = open_split(run, data, split, checkpoint, process)
    ranker: RankingModel = model.module.model
    ranker.reports_parts = True
    model.module.hides_all_grades = hide_grades
    return Scored(ranker, (_rows(batch, report, ranker.reported, config.score) for batch, report in batches))


def _rows(batch: SearchBatch, report: StepReport, reported: Mapping[str, ReportedPart], score: Mapping[str, Worth]) -> Rows:
    batch = batch.to(torch.device("cpu"))
    real = batch.candidate_weight > 0
    request = batch.candidate_request
    click, weight, _ = batch.labels()["click"]
    columns: dict[str, Tensor] = {
        "request_id": batch["request_id"][request],
        "item_id": batch["candidate_item_id"],
        "user_id": batch["user_id"][request],
        "click_probability": report.ranking["click"].sigmoid(),
        "logit": report.ranking["click"],
        "logged_logit": report.logged["click"],
        "relevance": batch["candidate_relevance"],
        "click": click.masked_fill(weight == 0, torch.nan),
        "position": batch["candidate_position"],
        **_labels(batch, report),
        **part_values(reported, report.parts),
    }
    rows = {name: cast(NDArray[np.generic], column.cpu()[real].numpy()) for name, column in columns.items()}
    numbers = {c: batch[f"candidate_{c}"].squeeze(1)[real].numpy() for c in multiplied(score).values()}
    rows |= {column: numbers[multiplied(score)[label]] for label, column in worth_columns(score).items()}
    rows["score"] = expected_worth({label: rows[f"{label}_probability"] for label in report.ranking}, each_worth(score, numbers))
    return rows


def _labels(batch: SearchBatch, report: StepReport) -> dict[str, Tensor]:
    """The columns of labels beside the click."""
    found: dict[str, Tensor] = {}
    for label, (value, weight, _) in batch.labels().items():
        if label != "click" and label in report.ranking:
            probabilities = (logit[label].sigmoid() for logit in (report.ranking, report.logged))
            names = (f"{label}_probability", f"{label}_probability_at_position", label)
            found |= dict(zip(names, (*probabilities, value.masked_fill(weight == 0, torch.nan)), strict=True))
    return found
