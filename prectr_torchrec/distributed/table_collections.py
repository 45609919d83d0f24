"""The tables of a configuration as TorchRec collections."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig, NoEvictionPolicy, PoolingType

from prectr_torchrec.config.tables import FeatureConfig, TableConfig, averaged_by_shares, bag_tables
from prectr_torchrec.distributed.managed import make_managed
from prectr_torchrec.modules import SearchEmbeddings

_DTYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}


def build_embeddings(
    tables: dict[str, TableConfig], features: dict[str, FeatureConfig], device: torch.device | None = None
) -> SearchEmbeddings:
    """The collections of the tables, each table in one of them."""
    bag_names, shares = bag_tables(features), averaged_by_shares(features)
    weighted = {feature.table for name, feature in features.items() if feature.weights or name in shares}
    sequences: list[EmbeddingConfig] = []
    bags: dict[str, list[EmbeddingBagConfig]] = {"candidate": [], "request": []}
    for name, table in tables.items():
        named = {f: feature for f, feature in features.items() if feature.table == name}
        kind: Any = (
            partial(EmbeddingBagConfig, pooling=_pooling(named, weighted=name in weighted))
            if name in bag_names
            else EmbeddingConfig
        )
        virtual = table.kernel_facts.virtual
        made = kind(
            name=name,
            num_embeddings=table.rows,
            embedding_dim=table.dim,
            feature_names=list(named),
            data_type=_DTYPES[table.dtype],
            use_virtual_table=virtual,
            total_num_buckets=table.buckets if virtual else None,
            virtual_table_eviction_policy=NoEvictionPolicy() if virtual else None,
        )
        stride = "candidate" if all(feature.startswith("candidate_") for feature in named) else "request"
        (bags[stride] if name in bag_names else sequences).append(made)
    where = device or torch.device("cpu")
    managed = {name: make_managed(name, table, where) for name, table in tables.items() if table.ids == "managed"}
    of_requests = bags["request"]
    return SearchEmbeddings(
        sequences, bags["candidate"], request_bag_tables=of_requests, weighted=weighted, managed=managed, device=device
    )


def _pooling(features: dict[str, FeatureConfig], *, weighted: bool) -> PoolingType:
    """The weights of a mean are shares already."""
    mean = not weighted and any(feature.pooling == "mean" for feature in features.values())
    return PoolingType.MEAN if mean else PoolingType.SUM
