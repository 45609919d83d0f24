"""A configuration becomes a model: tables and towers from `modules`, wired by the features it names."""

from __future__ import annotations

import json
import math
from pathlib import Path

import snowballstemmer
import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig, NoEvictionPolicy
from transformers import CONFIG_MAPPING, AutoConfig

from prectr_torchrec.config import ConfigError, RunConfig, nearest
from prectr_torchrec.config_tables import VIRTUAL
from prectr_torchrec.data.batch import SearchBatch
from prectr_torchrec.distributed.managed import make_managed
from prectr_torchrec.modules import PRECTR, PreferenceParts, SearchEmbeddings, TextEncoder, TextMatch, TextRelevance
from prectr_torchrec.text.tokenizer import DOCUMENT_FREQUENCY, load_tokenizer
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
    return PRECTR(
        num_levels=config.data.levels.count,
        request_dims=request,
        candidate_dims=candidate,
        history=history,
        peers=peers,
        preference=PreferenceParts(
            **model.preference.model_dump(), vocab_size=len(load_tokenizer(tokenizer)) if model.preference.taste else 0
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


def build_relevance(config: RunConfig, tokenizer: Path) -> TextRelevance:
    """The text side: encoder, match features and relevance tower."""
    encoder = _build_encoder(config, tokenizer) if config.model.text else None
    if encoder is not None and config.text.frozen:
        encoder.requires_grad_(False)
    match = build_match(tokenizer, config.text.stemmer) if config.model.match else None
    if encoder is None and match is None:
        raise ConfigError("model.text and model.match are both false: the relevance tower needs one of them")
    return TextRelevance(encoder, match, config.model.relevance_tower, config.data.levels.count, dropout=config.model.dropout)


def _build_encoder(config: RunConfig, tokenizer: Path) -> TextEncoder:
    vocabulary = load_tokenizer(tokenizer)
    if config.text.path:
        if load_tokenizer(Path(config.text.path)).get_vocab() != vocabulary.get_vocab():
            raise ConfigError(
                f"text.path: {config.text.path} has another vocabulary than {tokenizer}: its encoder would read noise"
            )
        encoder = TextEncoder.from_pretrained(config.text.path)
    else:
        settings = {"vocab_size": len(vocabulary), "pad_token_id": vocabulary.pad_token_id, **config.text.encoder}
        if settings.get("model_type") not in CONFIG_MAPPING:
            raise ConfigError(
                f"text.encoder.model_type: {settings.get('model_type')!r} is no Hugging Face architecture; try bert"
            )
        known = AutoConfig.for_model(settings["model_type"]).to_dict()
        for key in settings:
            if key not in known:
                raise ConfigError(f"text.encoder.{key}: unknown to {settings['model_type']}{nearest(key, known)}")
        encoder = TextEncoder.from_config(**settings)
    longest, limit = max(config.text.query_tokens, config.text.title_tokens), encoder.model.config.max_position_embeddings
    if longest > limit:
        raise ConfigError(
            f"text.title_tokens and text.query_tokens may be at most {limit}, the encoder's positions; got {longest}"
        )
    return encoder


def build_match(tokenizer: Path, stemmer: str | None) -> TextMatch:
    """Match features over a tokenizer's vocabulary, weighted by the document frequencies beside it.

    Args:
        tokenizer: tokenizer folder.
        stemmer: a Snowball language, so that "screws" meets "screw"; None: tokens meet only themselves.

    Raises:
        ConfigError: Snowball has no such language.
    """
    if stemmer and stemmer not in snowballstemmer.algorithms():
        raise ConfigError(f"text.stemmer: no Snowball language {stemmer!r}{nearest(stemmer, snowballstemmer.algorithms())}")
    counts = json.loads((tokenizer / DOCUMENT_FREQUENCY).read_text())
    tokens = load_tokenizer(tokenizer).convert_ids_to_tokens(list(range(len(counts["frequency"]))))
    stem_word = snowballstemmer.stemmer(stemmer).stemWord if stemmer else str
    first: dict[str, int] = {}  # stem -> the first token that has it; the inner pieces of words have no stem
    stem = [first.setdefault(token if token.startswith("##") else stem_word(token), i) for i, token in enumerate(tokens)]
    frequency = torch.zeros(len(tokens)).index_add(0, torch.tensor(stem), torch.tensor(counts["frequency"], dtype=torch.float32))
    idf = (math.log1p(counts["documents"]) - frequency.clamp(max=counts["documents"]).log1p()).clamp(min=0.01)
    is_number = torch.tensor([token.removeprefix("##").isdigit() for token in tokens])
    return TextMatch(idf[stem], is_number, torch.tensor(stem))


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
