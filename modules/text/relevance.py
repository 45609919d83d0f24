"""Relevance of a title to a query, from their texts alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers import hidden_layers
from .interaction import Interaction
from .match import TextMatch


class Relevance(NamedTuple):
    hidden: Tensor
    """(C, H) the relevance vector, `a`."""
    log_pi: Tensor
    """(C, K) log probabilities of the levels."""


class RelevanceTower(nn.Module):
    """Level probabilities of a (query, item) pair from text alone: what it says of a pair holds for any user.

    Args:
        in_dim: width of the text features.
        hidden: widths of the hidden layers; the last one is the relevance vector.
        num_levels: K.
        dropout: on the hidden layers.
    """

    def __init__(self, in_dim: int, hidden: list[int], num_levels: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = hidden_layers(in_dim, hidden, dropout)
        self.head = nn.Linear(hidden[-1], num_levels)

    def forward(self, text_features: Tensor) -> Relevance:
        """Args: text_features: (C, in_dim)."""
        hidden = self.layers(text_features)
        return Relevance(hidden, self.head(hidden).log_softmax(1))


class TextRelevance(nn.Module):
    """Interaction, match features and relevance tower: token ids in, level probabilities out.

    Texts are encoded, and pairs matched, by methods of their own, so that a caller does either once and uses it twice.

    Args:
        interaction: how the encoder reads the texts, or None for match features alone.
        match: match features, or None for the encoder alone.
        hidden: widths of the relevance tower.
        num_levels: K.
        dropout: of the tower.

    Example::

        relevance = TextRelevance(DualInteraction(encoder), match, [128, 64], num_levels=4)
        titles = relevance.encode(title_tokens)  # may be kept
        pair = relevance.pair(relevance.encode(query_tokens), titles)
        out = relevance(pair, relevance.match_features(query_tokens, title_tokens))
    """

    def __init__(
        self,
        interaction: Interaction | None,
        match: TextMatch | None,
        hidden: list[int],
        num_levels: int,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if interaction is None and match is None:
            raise ValueError("a relevance tower needs the text encoder, the match features, or both")
        self.interaction, self.match = interaction, match
        self.title_dim = interaction.title_dim if interaction is not None else 0
        self.match_dim = match.num_features if match is not None else 0
        text_dim = interaction.feature_dim if interaction is not None else 0
        self.tower = RelevanceTower(text_dim + self.match_dim, hidden, num_levels, dropout=dropout)

    def encode(self, tokens: Tensor) -> Tensor:
        """One row (N, ...) a text (N, W), of that text alone; those of titles may be kept. (N, 0) without an encoder."""
        return self.interaction.encode(tokens) if self.interaction is not None else _nothing(tokens)

    def pair(self, query: Tensor, title: Tensor) -> Tensor:
        """Vectors (C, P) of the pairs of `encode`'s rows (C, ...); P is 0 without an encoder."""
        return self.interaction.pair(query, title) if self.interaction is not None else _nothing(title)

    def title_vector(self, pair: Tensor) -> Tensor:
        """The titles' own vectors (C, title_dim) within the pairs' (C, P)."""
        return self.interaction.title_vector(pair) if self.interaction is not None else pair

    def match_features(self, query_tokens: Tensor, title_tokens: Tensor) -> Tensor:
        """Features (C, match_dim) of the pairs (C, W); match_dim is 0 without match features."""
        return self.match(query_tokens, title_tokens) if self.match is not None else _nothing(query_tokens)

    def forward(self, pair: Tensor, match: Tensor) -> Relevance:
        """Args: pair: (C, P) vectors; match: (C, match_dim), of the same pairs."""
        text = self.interaction.features(pair) if self.interaction is not None else pair
        return self.tower(torch.cat([text, match], dim=1))


def _nothing(rows: Tensor) -> Tensor:
    return torch.zeros(rows.shape[0], 0, device=rows.device)
