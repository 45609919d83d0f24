"""Sparse lookups: an EmbeddingCollection a width over requests and sequences, EmbeddingBagCollections over both."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection, JaggedTensor, KeyedJaggedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection, ManagedCollisionEmbeddingCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection, ManagedCollisionModule


class SearchEmbeddings(nn.Module):
    """Looks up a batch of R requests with C candidates between them: what belongs to a request once, not once a candidate.

    A feature of a request is a jagged list of ids with stride R: one id, the events of its history, or its candidates one
    after another. Its vectors stay apart, one an id. A bag belongs to a candidate, with stride C, or to a request, with stride R,
    and its vectors are pooled: summed or averaged, or, where the table's bags have weights, summed with these.

    Kept apart from the towers so that TorchRec's pipelines trace it: this module is all they have to see of the model.

    Args:
        tables: tables of request features, in a TorchRec `EmbeddingCollection` for each width.
        bag_tables: tables of bags of candidates, in a TorchRec `EmbeddingBagCollection`.
        request_bag_tables: tables of bags of requests, in another.
        weighted: names of the tables whose bags have weights, which lie in collections of their own.
        managed: by table, what gives raw ids rows of their own; these tables have collections of their own, since TorchRec's
            collections manage all of their tables or none.
        device: `meta` leaves the memory to the sharder.

    Raises:
        ValueError: a table whose bags have weights is to average them, which PyTorch does not.

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
        request_bag_tables: Sequence[EmbeddingBagConfig] = (),
        weighted: Collection[str] = (),
        managed: Mapping[str, ManagedCollisionModule] | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        bags_of_all = [*bag_tables, *request_bag_tables]
        if averaged := [bag.name for bag in bags_of_all if bag.name in weighted and bag.pooling is PoolingType.MEAN]:
            raise ValueError(f"bags with weights are summed, not averaged: {', '.join(averaged)}")
        by_width: dict[str, list[EmbeddingConfig]] = {}
        for table in tables:
            by_width.setdefault(f"{'managed_' if table.name in (managed or {}) else ''}{table.embedding_dim}", []).append(table)
        self.sequences = nn.ModuleDict({name: _sequences(group, managed or {}, device) for name, group in by_width.items()})
        by_kind: dict[str, list[EmbeddingBagConfig]] = {}
        for stride, bags in (("candidate", bag_tables), ("request", request_bag_tables)):
            for bag in bags:
                kind = "_".join(["managed"] * (bag.name in (managed or {})) + ["weighted"] * (bag.name in weighted) + [stride])
                by_kind.setdefault(kind, []).append(bag)
        self.bags = nn.ModuleDict({name: _bags(name, group, managed or {}, device) for name, group in by_kind.items()})

    def forward(
        self, request_features: KeyedJaggedTensor, candidate_features: KeyedJaggedTensor
    ) -> tuple[dict[str, JaggedTensor], dict[str, Tensor]]:
        """Looks up every feature that has a table.

        Args:
            request_features: of stride R, int64 ids, with weights where bags of requests have these. Ids of the other features
                then weigh 1: sharded collections multiply by what is there. Bags beside them are no averages: kernels leave the
                gradients of weighted ids undivided, so let such ids weigh their share of a sum.
            candidate_features: of stride C, alike.

        Returns:
            The jagged vectors, (ids, dim), of each request feature that is no bag, and the pooled vectors, (C, dim) or (R, dim),
            of each bag.
        """
        found = [lookup(request_features) for lookup in self.sequences.values()]
        ids = {name: request_features if name.endswith("request") else candidate_features for name in self.bags}
        pooled = [lookup(ids[name]) for name, lookup in self.bags.items()]  # all under way before the first is waited for
        return _joined(found), _joined_bags(pooled)


def _sequences(tables: list[EmbeddingConfig], managed: Mapping[str, ManagedCollisionModule], device: Any) -> nn.Module:
    whole = EmbeddingCollection(tables=tables, device=device)
    if tables[0].name not in managed:
        return whole
    return ManagedCollisionEmbeddingCollection(whole, _ids(tables, managed))


def _bags(name: str, tables: list[EmbeddingBagConfig], managed: Mapping[str, ManagedCollisionModule], device: Any) -> nn.Module:
    whole = EmbeddingBagCollection(tables=tables, is_weighted="weighted" in name, device=device)
    if not name.startswith("managed"):
        return whole
    return ManagedCollisionEmbeddingBagCollection(whole, _ids(tables, managed))


def _ids(tables: list[Any], managed: Mapping[str, ManagedCollisionModule]) -> ManagedCollisionCollection:
    return ManagedCollisionCollection({t.name: managed[t.name] for t in tables}, tables)


# What looks at what was found stands in functions of their own, which torch.fx leaves whole. Managed collections give the ids
# that they made beside the vectors.
@torch.fx.wrap
def _joined(found: list[Any]) -> dict[str, JaggedTensor]:
    return {name: vectors for each in found for name, vectors in (each[0] if isinstance(each, tuple) else each).items()}


@torch.fx.wrap
def _joined_bags(found: list[Any]) -> dict[str, Tensor]:
    return {name: pooled for each in found for name, pooled in (each[0] if isinstance(each, tuple) else each).to_dict().items()}
