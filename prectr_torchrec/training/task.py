"""A configuration becomes a model to train: tables, towers and the objective."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.distributed.embeddings import build_embeddings
from prectr_torchrec.models import build_prectr
from prectr_torchrec.modules import SearchEmbeddings
from prectr_torchrec.training.freezing import HeldFeatures, freeze_towers, frozen_tables
from prectr_torchrec.training.objectives import Objective


class RankingTask(nn.Module):
    """What a TorchRec pipeline trains: a batch in, the loss and what to report out.

    Only this module and the embeddings are traced; towers and objective are leaves.
    """

    def __init__(self, embeddings: SearchEmbeddings, objective: Objective, held: HeldFeatures | None = None) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.objective = objective
        self.held = held

    def forward(self, batch: SearchBatch) -> tuple[Tensor, dict[str, Tensor]]:
        sequences, bags = self.embeddings(batch.request_features, batch.candidate_features)
        if self.held is not None:
            sequences, bags = self.held(sequences, bags)
        return self.objective(batch, sequences, bags)


def build_task(
    config: RunConfig, tokenizer: Path, *, table_device: torch.device | None = None, kept: bool = False
) -> RankingTask:
    """Builds the unsharded model.

    Args:
        config: the run.
        tokenizer: tokenizer folder of the prepared data or of the run.
        table_device: `meta` leaves the tables' memory to the sharder.
        kept: as of `text.build.build_relevance`.
    """
    frozen = frozen_tables(config)
    held = HeldFeatures({name for name, feature in config.features.items() if feature.table in frozen}) if frozen else None
    objective = Objective(build_prectr(config, tokenizer, kept=kept), config.objective)
    task = RankingTask(build_embeddings(config, table_device), objective, held)
    if config.train.freeze:
        freeze_towers(task, config)
    return task
