"""Relevance of a title to a query, from their texts alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .text_encoder import TextEncoder, pairwise_text_features
from .text_match import TextMatch
from .towers import Relevance, RelevanceTower


class TextRelevance(nn.Module):
    """Encoder, match features and relevance tower: token ids in, level probabilities out.

    Texts are encoded, and pairs matched, by methods of their own, so that a caller does either once and uses it twice.

    Args:
        encoder: text encoder, or None for match features alone.
        match: match features, or None for the encoder alone.
        hidden: widths of the relevance tower.
        num_levels: K.
        dropout: of the tower.

    Example::

        query, title = relevance.encode(query_tokens), relevance.encode(title_tokens)
        out = relevance(query, title, relevance.match_features(query_tokens, title_tokens))
    """

    def __init__(
        self, encoder: TextEncoder | None, match: TextMatch | None, hidden: list[int], num_levels: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if encoder is None and match is None:
            raise ValueError("a relevance tower needs the text encoder, the match features, or both")
        self.encoder, self.match = encoder, match
        self.text_dim = encoder.dim if encoder is not None else 0
        self.match_dim = match.num_features if match is not None else 0
        self.tower = RelevanceTower(4 * self.text_dim + self.match_dim, hidden, num_levels, dropout=dropout)

    def encode(self, tokens: Tensor) -> Tensor:
        """Vectors (N, text_dim) of the texts (N, W); text_dim is 0 without an encoder."""
        return self.encoder(tokens) if self.encoder is not None else _nothing(tokens)

    def match_features(self, query_tokens: Tensor, title_tokens: Tensor) -> Tensor:
        """Features (C, match_dim) of the pairs (C, W); match_dim is 0 without match features."""
        return self.match(query_tokens, title_tokens) if self.match is not None else _nothing(query_tokens)

    def forward(self, query: Tensor, title: Tensor, match: Tensor) -> Relevance:
        """Args: query, title: (C, text_dim) vectors; match: (C, match_dim), of the same pairs."""
        return self.tower(torch.cat([pairwise_text_features(query, title), match], dim=1))


def _nothing(tokens: Tensor) -> Tensor:
    return torch.zeros(tokens.shape[0], 0, device=tokens.device)
