"""The relevance tower and the click tower."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet


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


class ClickTower(nn.Module):
    """Click logits, one per relevance level, from everything known of the request and the candidate.

    Args:
        in_dim: width of the concatenated inputs.
        hidden: widths of the hidden layers.
        num_logits: K, or 1 without a mixture.
        cross_layers: layers of TorchRec's low-rank cross network before the hidden layers; 0 for none.
        dropout: on the hidden layers.
    """

    def __init__(self, in_dim: int, hidden: list[int], num_logits: int, *, cross_layers: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.cross = LowRankCrossNet(in_dim, cross_layers, low_rank=min(64, in_dim)) if cross_layers else None
        self.layers = hidden_layers(in_dim, hidden, dropout)
        self.head = nn.Linear(hidden[-1], num_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x: (C, in_dim). Returns: (C, num_logits)."""
        if self.cross is not None:
            x = self.cross(x)
        return self.head(self.layers(x))


def perceptron(in_dim: int, hidden: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Linear(hidden, out_dim))


def hidden_layers(in_dim: int, hidden: list[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out_dim in hidden:
        layers += [nn.Linear(in_dim, out_dim), nn.ReLU(), nn.Dropout(dropout)]
        in_dim = out_dim
    return nn.Sequential(*layers)
