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
    """Looks up a batch of R requests with C candidates between them: what belongs to a request once, not once a candidate.

    A feature of a request is a jagged list of ids with stride R: one id, the events of its history, or its candidates one
    after another. Its vectors stay apart, one an id. A bag belongs to a candidate, has stride C, and its vectors are summed.

    Kept apart from the towers so that TorchRec's pipelines trace it: this module is all they have to see of the model.

    Args:
        tables: tables of request features, in a TorchRec `EmbeddingCollection`; all of one width, as TorchRec asks.
        bag_tables: tables of bags, in a TorchRec `EmbeddingBagCollection`.
        managed: by table, what gives raw ids rows of their own; these tables have collections of their own, since TorchRec's
            collections manage all of their tables or none.
        device: `meta` leaves the memory to the sharder.

    Example::

        from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor

        items = EmbeddingConfig(name="item", num_embeddings=100, embedding_dim=8, feature_names=["candidate_item_id"])
        tokens = EmbeddingBagConfig(name="token", num_embeddings=50, embedding_dim=4, feature_names=["title_tokens"])
        embeddings = SearchEmbeddings([items], [tokens])
        of_requests = KeyedJaggedTensor(  # R = 2 requests with 1 and 2 candidates
            ["candidate_item_id"], torch.tensor([7, 8, 9]), lengths=torch.tensor([1, 2])
        )
        of_candidates = KeyedJaggedTensor(["title_tokens"], torch.tensor([5, 6, 5]), lengths=torch.tensor([2, 0, 1]))
        sequences, bags = embeddings(of_requests, of_candidates)
        assert sequences["candidate_item_id"].values().shape == (3, 8)
        assert bags["title_tokens"].shape == (3, 4)  # (C, dim)
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
        """Looks up every feature that has a table.

        Args:
            request_features: of stride R, int64 ids.
            candidate_features: of stride C, int64 ids.

        Returns:
            The jagged vectors, (ids, dim), of each request feature, and the summed vectors, (C, dim), of each bag.
        """
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
