"""Sparse lookups: one EmbeddingCollection over requests and sequences, one EmbeddingBagCollection over candidates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection, JaggedTensor, KeyedJaggedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig


class SearchEmbeddings(nn.Module):
    """Looks up a request-major batch: every request-level id once per request, not once per candidate.

    Kept apart from the towers so that TorchRec's pipelines trace it: this module is all they have to see of the model.

    Args:
        tables: sequence tables, looked up with stride R in the EmbeddingCollection.
        bag_tables: tables of candidate-level bags, summed with stride C in the EmbeddingBagCollection.
        device: `meta` leaves the memory to the sharder.
    """

    def __init__(
        self, tables: list[EmbeddingConfig], bag_tables: list[EmbeddingBagConfig], *, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.sequences = EmbeddingCollection(tables=tables, device=device) if tables else None
        self.bags = EmbeddingBagCollection(tables=bag_tables, device=device) if bag_tables else None

    def forward(
        self, request_features: KeyedJaggedTensor, candidate_features: KeyedJaggedTensor
    ) -> tuple[dict[str, JaggedTensor], dict[str, Tensor]]:
        """Returns the jagged vectors of each request feature (stride R) and the pooled (C, dim) of each candidate bag."""
        sequences = self.sequences(request_features) if self.sequences is not None else {}
        bags = self.bags(candidate_features).to_dict() if self.bags is not None else {}
        return sequences, bags
