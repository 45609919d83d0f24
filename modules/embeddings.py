"""Sparse lookups: one EmbeddingCollection over requests and sequences, one EmbeddingBagCollection over candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection, JaggedTensor, KeyedJaggedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection, ManagedCollisionEmbeddingCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection, ManagedCollisionModule


class SearchEmbeddings(nn.Module):
    """Looks up a request-major batch: every request-level id once per request, not once per candidate.

    Kept apart from the towers so that TorchRec's pipelines trace it: this module is all they have to see of the model.

    Args:
        tables: sequence tables, looked up with stride R in the EmbeddingCollection.
        bag_tables: tables of candidate-level bags, summed with stride C in the EmbeddingBagCollection.
        managed: by table, what gives raw ids rows of their own; these tables have collections of their own, since TorchRec's
            collections manage all of their tables or none.
        device: `meta` leaves the memory to the sharder.
    """

    def __init__(
        self,
        tables: list[EmbeddingConfig],
        bag_tables: list[EmbeddingBagConfig],
        *,
        managed: Mapping[str, ManagedCollisionModule] | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        of = managed or {}
        plain, raw = [t for t in tables if t.name not in of], [t for t in tables if t.name in of]
        plain_bags, raw_bags = [t for t in bag_tables if t.name not in of], [t for t in bag_tables if t.name in of]
        self.sequences = EmbeddingCollection(tables=plain, device=device) if plain else None
        self.bags = EmbeddingBagCollection(tables=plain_bags, device=device) if plain_bags else None

        def ids(of_tables: list[Any]) -> ManagedCollisionCollection:
            return ManagedCollisionCollection({t.name: of[t.name] for t in of_tables}, of_tables)

        self.managed_sequences: ManagedCollisionEmbeddingCollection | None = None
        self.managed_bags: ManagedCollisionEmbeddingBagCollection | None = None
        if raw:
            whole = EmbeddingCollection(tables=raw, device=device)
            self.managed_sequences = ManagedCollisionEmbeddingCollection(whole, ids(raw))
        if raw_bags:
            whole_bags = EmbeddingBagCollection(tables=raw_bags, device=device)
            self.managed_bags = ManagedCollisionEmbeddingBagCollection(whole_bags, ids(raw_bags))

    def forward(
        self, request_features: KeyedJaggedTensor, candidate_features: KeyedJaggedTensor
    ) -> tuple[dict[str, JaggedTensor], dict[str, Tensor]]:
        """Returns the jagged vectors of each request feature (stride R) and the pooled (C, dim) of each candidate bag."""
        sequences = self.sequences(request_features) if self.sequences is not None else {}
        bags = self.bags(candidate_features).to_dict() if self.bags is not None else {}
        if self.managed_sequences is not None:
            sequences = _joined(sequences, self.managed_sequences(request_features)[0])
        if self.managed_bags is not None:
            bags = _joined(bags, self.managed_bags(candidate_features)[0].to_dict())
        return sequences, bags


@torch.fx.wrap
def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {**one, **other}
