"""The unsharded model of a small run, with rows that say something, and its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_run import small_config, small_numbers
from torch import nn

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.modules import Inputs, Predictions
from prectr_torchrec.training.task import RankingTask, build_task


def small(**model: Any) -> RunConfig:
    return small_config(model=model)


def build(config: RunConfig, data: Path) -> RankingTask:
    torch.manual_seed(0)
    task = build_task(config, data / TOKENIZER, numbers=small_numbers(config)).eval()
    for name, parameter in task.embeddings.named_parameters():
        nn.init.normal_(parameter) if "embeddings" in name else None
    return task


def batches(config: RunConfig, data: Path, split: str = "train") -> list[SearchBatch]:
    return list(SearchReader(config, data, split, data / TOKENIZER).epoch(0))


def inputs_of(task: RankingTask, batch: SearchBatch) -> Inputs:
    return batch.inputs(*task.embeddings(batch.request_features, batch.candidate_features))


def run(task: RankingTask, batch: SearchBatch) -> Predictions:
    """What the ranker says of a batch."""
    return task.model(inputs_of(task, batch))


def outputs_of(task: RankingTask) -> list[Predictions]:
    """A list to which each pass through the ranker adds what it gave."""
    found: list[Predictions] = []
    task.model.register_forward_hook(lambda module, given, output: found.append(output))
    return found
