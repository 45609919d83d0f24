"""Relevance of a title to a query, from their texts alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .text_encoder import TextEncoder, pairwise_text_features
from .text_match import TextMatch
from .towers import Relevance, RelevanceTower


class TextRelevance(nn.Module):
    """Encoder, match features and relevance tower as one: token ids in, level probabilities out.

    Args:
        encoder: text encoder, or None for match features alone.
        match: match features, or None for the encoder alone.
        hidden: widths of the relevance tower.
        num_levels: K.
        dropout: of the tower.
    """

    def __init__(
        self, encoder: TextEncoder | None, match: TextMatch | None, hidden: list[int], num_levels: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if encoder is None and match is None:
            raise ValueError("a relevance tower needs the text encoder, the match features, or both")
        self.encoder, self.match = encoder, match
        self.text_dim = encoder.dim if encoder is not None else 0
        in_dim = 4 * self.text_dim + (match.num_features if match is not None else 0)
        self.tower = RelevanceTower(in_dim, hidden, num_levels, dropout=dropout)

    def encode(self, tokens: Tensor) -> Tensor:
        """Vectors (N, text_dim) of the texts (N, W); text_dim is 0 without an encoder."""
        return self.encoder(tokens) if self.encoder is not None else tokens.new_zeros(tokens.shape[0], 0, dtype=torch.float32)

    def forward(self, query: Tensor, title: Tensor, query_tokens: Tensor, title_tokens: Tensor) -> Relevance:
        """Args: query, title: (C, text_dim) vectors; query_tokens, title_tokens: (C, W) of the same pairs."""
        features = []
        if self.encoder is not None:
            features.append(pairwise_text_features(query, title))
        if self.match is not None:
            features.append(self.match(query_tokens, title_tokens))
        return self.tower(torch.cat(features, dim=1))
