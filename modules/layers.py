"""Layers that towers and parts share."""

from __future__ import annotations

from torch import nn


def perceptron(in_dim: int, hidden: int, out_dim: int) -> nn.Sequential:
    """One hidden layer with ReLU and a linear output: (..., in_dim) to (..., out_dim)."""
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Linear(hidden, out_dim))


def hidden_layers(in_dim: int, hidden: list[int], dropout: float) -> nn.Sequential:
    """Linear layers of the given widths, each with ReLU and dropout: (..., in_dim) to (..., hidden[-1])."""
    layers: list[nn.Module] = []
    for out_dim in hidden:
        layers += [nn.Linear(in_dim, out_dim), nn.ReLU(), nn.Dropout(dropout)]
        in_dim = out_dim
    return nn.Sequential(*layers)
