"""A configuration becomes a model to train: tables, towers and the objective."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig, NoEvictionPolicy

from prectr_torchrec.build import build_prectr
from prectr_torchrec.config import RunConfig
from prectr_torchrec.config_tables import VIRTUAL
from prectr_torchrec.data.batch import SearchBatch
from prectr_torchrec.distributed.managed import make_managed
from prectr_torchrec.modules import SearchEmbeddings
from prectr_torchrec.training.freezing import HeldFeatures, freeze_towers, frozen_tables
from prectr_torchrec.training.objectives import Objective

_DTYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}


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


def build_embeddings(config: RunConfig, device: torch.device | None = None) -> SearchEmbeddings:
    """The collections of `config.tables`, each table in one of them."""
    bag_names = config.bag_tables()
    tables: list[EmbeddingConfig] = []
    bag_tables: list[EmbeddingBagConfig] = []
    for name, table in config.tables.items():
        kind = EmbeddingBagConfig if name in bag_names else EmbeddingConfig
        virtual = table.kernel in VIRTUAL
        made = kind(
            name=name,
            num_embeddings=table.rows,
            embedding_dim=table.dim,
            feature_names=[f for f, feature in config.features.items() if feature.table == name],
            data_type=_DTYPES[table.dtype],
            use_virtual_table=virtual,
            total_num_buckets=table.buckets if virtual else None,
            virtual_table_eviction_policy=NoEvictionPolicy() if virtual else None,
        )
        (bag_tables if name in bag_names else tables).append(made)
    where = device or torch.device("cpu")
    managed = {name: make_managed(name, table, where) for name, table in config.tables.items() if table.ids == "managed"}
    return SearchEmbeddings(tables, bag_tables, managed=managed, device=device)
