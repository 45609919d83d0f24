"""A configuration becomes a model: tables and towers from `modules`, wired by the features it names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig, NoEvictionPolicy

from prectr_torchrec.config import ConfigError, RunConfig
from prectr_torchrec.config_tables import VIRTUAL
from prectr_torchrec.data.batch import SearchBatch
from prectr_torchrec.distributed.managed import make_managed
from prectr_torchrec.modules import PRECTR, PreferenceParts, SearchEmbeddings
from prectr_torchrec.text.build import build_relevance
from prectr_torchrec.text.tokenizer import load_tokenizer, special_ids
from prectr_torchrec.training.objectives import Objective

_DTYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "int8": DataType.INT8}


class RankingTask(nn.Module):
    """What a TorchRec pipeline trains: a batch in, the loss and what to report out.

    Only this module and the embeddings are traced; towers and objective are leaves.
    """

    def __init__(self, embeddings: SearchEmbeddings, objective: Objective) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.objective = objective

    def forward(self, batch: SearchBatch) -> tuple[Tensor, dict[str, Tensor]]:
        sequences, bags = self.embeddings(batch.request_features, batch.candidate_features)
        return self.objective(batch, sequences, bags)


def build_task(config: RunConfig, tokenizer: Path, *, table_device: torch.device | None = None) -> RankingTask:
    """Builds the unsharded model.

    Args:
        config: the run.
        tokenizer: tokenizer folder of the prepared data or of the run.
        table_device: `meta` leaves the tables' memory to the sharder.
    """
    return RankingTask(build_embeddings(config, table_device), Objective(build_prectr(config, tokenizer), config.objective))


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


def build_prectr(config: RunConfig, tokenizer: Path) -> PRECTR:
    """The towers.

    Raises:
        ConfigError: features and model do not fit together.
    """
    model = config.model
    dims = {name: config.tables[feature.table].dim for name, feature in config.features.items()}
    candidate = {n: d for n, d in dims.items() if n.startswith("candidate_")}
    history = {n: _target(n, dims) for n in dims if n.startswith("history_")}
    request = {n: d for n, d in dims.items() if n not in candidate and not n.startswith(("history_", "peer_"))}
    peers = {n: _target(n, dims) for n in dims if n.startswith("peer_")}
    _check_events(config, history, peers)
    vocabulary = load_tokenizer(tokenizer)
    return PRECTR(
        num_levels=config.data.levels.count,
        request_dims=request,
        candidate_dims=candidate,
        history=history,
        peers=peers,
        preference=PreferenceParts(
            **model.preference.model_dump(), vocab_size=len(vocabulary), special_tokens=special_ids(vocabulary)
        ),
        relevance=build_relevance(config, tokenizer),
        statistics=list(model.statistics),
        position_corrected=model.position_corrected,
        mixture=model.mixture,
        interest=model.interest,
        attention_dim=model.attention_dim,
        attention_heads=model.attention_heads,
        click_tower=model.click_tower,
        cross_layers=model.cross_layers,
        num_positions=model.position_count if model.position_bias else None,
        known_grade=model.known_grade,
        grade_range=(config.data.levels.grade_min, config.data.levels.grade_max),
        level_grades=config.data.levels.grades,
        dropout=model.dropout,
    )


def _check_events(config: RunConfig, history: dict[str, str], peers: dict[str, str]) -> None:
    model = config.model
    if (model.interest or model.preference.own) and not history:
        key = "interest" if model.interest else "preference.own"
        raise ConfigError(f"model.{key}: true needs at least one history_* feature, such as history_item_id")
    if model.preference.incentive != "none" and not (model.preference.own or model.preference.peers):
        raise ConfigError("model.preference.incentive: needs model.preference.own or peers, the preference it compares with")
    compared = {target for target in history.values() if target.startswith("candidate_")}
    if model.preference.peers and model.preference.own and set(peers.values()) != compared:
        missing = ", ".join(sorted(compared ^ set(peers.values())))
        raise ConfigError(
            f"model.preference.peers: peer_* and history_* features must be compared with the same candidate_* ones; {missing} "
            "has one of them only"
        )


def _target(event_feature: str, dims: dict[str, int]) -> str:
    """What an event's feature is compared with: the candidate's or the request's feature of the same name."""
    stem = event_feature.removeprefix("history_").removeprefix("peer_")
    for target in (f"candidate_{stem}", stem):
        if target in dims:
            if dims[target] != dims[event_feature]:
                raise ConfigError(f"features.{event_feature} and features.{target} need tables of the same dim")
            return target
    raise ConfigError(f"features.{event_feature}: add features.candidate_{stem} (or {stem}) to compare it with")
