"""Personal relevance incentive: what a known preference adds to the click logits, nothing for nobody in particular."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Incentive(NamedTuple):
    """What the preference of whoever asks adds to the click logits of C candidates."""

    tau: Tensor
    """(C, 1) or (C, K) float, added to the click logits; zero where the preference is the prior."""
    gate: Tensor
    """(C, 3) float, weights of raise, lower, leave at the preference; they sum to 1."""


class RelevanceIncentive(nn.Module):
    r"""A mixture of three experts on relevance against preference, less what it gives for the prior.

    Let :math:`a` be a candidate's relevance vector, projected to the width of a preference, :math:`r` the preference of whoever
    asks, :math:`r_0` that of a user of whom nothing is known, and :math:`f_{raise}, f_{lower}` two small MLPs. With
    :math:`w = [a; r; a - r; a \odot r]` and the gate :math:`g = \mathrm{softmax}(W w)` over raise, lower and leave,

    .. math:: \tau = h(a, r) - h(a, r_0), \quad
        h(a, r) = g_{raise} \mathrm{softplus}(f_{raise}(w)) - g_{lower} \mathrm{softplus}(f_{lower}(w)).

    Without the second term the incentive is not identified: the click tower reads :math:`a` too, so a model can move any
    function of :math:`a` from the tower into :math:`h` and back, and :math:`\tau` says nothing about the user. With it,
    :math:`\tau` is zero at :math:`r = r_0` and no such function can be in it. PRECTR-V2 (arXiv 2602.20676) names the part; this
    form is re-derived here. Nothing in it is random, in training or in scoring.

    Args:
        relevance_dim: width of the relevance vector.
        preference_dim: width of a preference.
        num_values: values a candidate: 1, shared by all levels, or K.
        hidden: width of the experts.

    Example::

        module = RelevanceIncentive(64, 32, num_values=4)
        relevance, preference, prior = torch.randn(5, 64), torch.randn(5, 32), torch.randn(32)
        preference[0] = prior  # of the first candidate's user nothing is known
        incentive = module(relevance, preference, prior)
        assert incentive.tau.shape == (5, 4) and incentive.gate.shape == (5, 3)
        assert incentive.tau[0].eq(0).all()
    """

    def __init__(self, relevance_dim: int, preference_dim: int, num_values: int, *, hidden: int = 32) -> None:
        super().__init__()
        self.relevance = nn.Linear(relevance_dim, preference_dim)
        self.gate = nn.Linear(4 * preference_dim, 3)
        self.raise_, self.lower = (_expert(4 * preference_dim, hidden, num_values) for _ in range(2))

    def forward(self, relevance: Tensor, preference: Tensor, prior: Tensor) -> Incentive:
        """The incentive of each candidate.

        Args:
            relevance: (C, relevance_dim) float, relevance vectors.
            preference: (C, preference_dim) float, `r`.
            prior: (preference_dim,) float, `r_0`.

        Returns:
            `tau` (C, num_values) and `gate` (C, 3), float.
        """
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
