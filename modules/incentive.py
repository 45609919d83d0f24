"""Personal relevance incentive: raise, lower or leave the click logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Incentive(NamedTuple):
    tau: Tensor
    """(C, 1) or (C, K), added to the click logits."""
    gate: Tensor
    """(C, 3) weights of raise, lower, leave."""


class RelevanceIncentive(nn.Module):
    r"""A mixture of three experts on relevance against preference.

    With the relevance vector :math:`a` and the preference :math:`r`, both projected to one width,
    :math:`w = [a; r; a - r; a \odot r]`, :math:`g = \mathrm{softmax}(W w)` and
    :math:`\tau = g_{raise} \mathrm{softplus}(f_{raise}(w)) - g_{lower} \mathrm{softplus}(f_{lower}(w))`.
    The papers name the part; this form is re-derived here. Nothing in it is random, in training or in scoring.

    Args:
        relevance_dim: width of `a`.
        preference_dim: width of `r`.
        num_values: 1, shared by all levels, or K.
        hidden: width of the experts.
    """

    def __init__(self, relevance_dim: int, preference_dim: int, num_values: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.relevance = nn.Linear(relevance_dim, preference_dim)
        self.gate = nn.Linear(4 * preference_dim, 3)
        self.raise_, self.lower = (_expert(4 * preference_dim, hidden, num_values) for _ in range(2))

    def forward(self, relevance: Tensor, preference: Tensor) -> Incentive:
        """Args: relevance: (C, relevance_dim); preference: (C, preference_dim)."""
        a, r = self.relevance(relevance), preference
        w = torch.cat([a, r, a - r, a * r], dim=1)
        gate = self.gate(w).softmax(1)
        tau = gate[:, :1] * F.softplus(self.raise_(w)) - gate[:, 1:2] * F.softplus(self.lower(w))
        return Incentive(tau, gate)


def _expert(in_dim: int, hidden: int, num_values: int) -> nn.Sequential:
    last = nn.Linear(hidden, num_values)
    nn.init.constant_(last.bias, -2.0)  # begins as a small correction
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), last)


def load_balance(gate: Tensor, weight: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' mean loads; zero when all are used alike.

    Args:
        gate: (C, E) expert weights.
        weight: (C,) zero for rows that do not count.
    """
    load = (gate * weight.unsqueeze(1)).sum(0) / weight.sum().clamp(min=1.0)
    return load.var(unbiased=False) / load.mean().square().clamp(min=1e-12)
