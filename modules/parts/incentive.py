"""Personal relevance incentive: what a known preference adds to the click logits, nothing for nobody in particular."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Incentive(NamedTuple):
    tau: Tensor
    """(C, 1) or (C, K), added to the click logits; zero where the preference is the prior."""
    gate: Tensor
    """(C, 3) weights of raise, lower, leave at the preference."""


class RelevanceIncentive(nn.Module):
    r"""A mixture of three experts on relevance against preference, less what it gives for the prior.

    With the relevance vector :math:`a`, projected to the width of a preference :math:`r`,
    :math:`w = [a; r; a - r; a \odot r]`, :math:`g = \mathrm{softmax}(W w)`,
    :math:`h(a, r) = g_{raise} \mathrm{softplus}(f_{raise}(w)) - g_{lower} \mathrm{softplus}(f_{lower}(w))`
    and, with the preference :math:`r_0` of a user of whom nothing is known, :math:`\tau = h(a, r) - h(a, r_0)`.

    Without the second term the incentive is not identified: the click tower reads :math:`a` too, so a model can move any
    function of :math:`a` from the tower into :math:`h` and back, and :math:`\tau` says nothing about the user. With it,
    :math:`\tau` is zero at :math:`r = r_0` and no such function can be in it. The papers name the part; this form is re-derived
    here. Nothing in it is random, in training or in scoring.

    Args:
        relevance_dim: width of `a`.
        preference_dim: width of `r`.
        num_values: 1, shared by all levels, or K.
        hidden: width of the experts.

    Example::

        incentive = RelevanceIncentive(64, 32, num_values=4)(relevance.hidden, preference.vector, preference_prior)
        z = click_logits + incentive.tau  # (C, 4)
    """

    def __init__(self, relevance_dim: int, preference_dim: int, num_values: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.relevance = nn.Linear(relevance_dim, preference_dim)
        self.gate = nn.Linear(4 * preference_dim, 3)
        self.raise_, self.lower = (_expert(4 * preference_dim, hidden, num_values) for _ in range(2))

    def forward(self, relevance: Tensor, preference: Tensor, prior: Tensor) -> Incentive:
        """Args: relevance: (C, relevance_dim); preference: (C, preference_dim); prior: (preference_dim,) `r_0`."""
        a = self.relevance(relevance)
        value, gate = self._experts(a, preference)
        at_prior, _ = self._experts(a, prior.expand_as(preference))  # of the same shape: equal rows cancel to the last bit
        return Incentive(value - at_prior, gate)

    def _experts(self, a: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """`h(a, r)` and the gate."""
        w = torch.cat([a, r, a - r, a * r], dim=1)
        gate = self.gate(w).softmax(1)
        return gate[:, :1] * F.softplus(self.raise_(w)) - gate[:, 1:2] * F.softplus(self.lower(w)), gate


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
