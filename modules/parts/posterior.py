"""What past clicks say of a preference vector, in closed form."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Posterior(NamedTuple):
    mean: Tensor
    """(R, P) expected preference for each target, in logits; 0 where nothing is known."""
    variance: Tensor
    """(R, P) what is still open, as a share of the prior's; 1 where nothing is known. Without gradient."""


class GaussianPosterior(nn.Module):
    r"""Bayesian linear regression of click surplus on event vectors, one small system for each request.

    An event :math:`j` with vector :math:`\phi_j` and expected click rate :math:`p_j` has the surplus :math:`a_j = c_j - p_j`
    and the information :math:`v_j = p_j (1 - p_j)`. A preference :math:`u \sim N(0, I / m)` that is added to the logit as
    :math:`u \cdot \phi` has, to first order, the posterior :math:`A^{-1} \sum_j a_j \phi_j` with :math:`A = m I + \sum_j v_j
    \phi_j \phi_j^T`. Unlike attention, whose weights sum to one, it knows how much was seen: few events leave it near the
    prior, many similar ones count as one. Re-derived here; Kalman-filter attention (arXiv 2010.00985) is the model for it.

    Args:
        precision: m at the start; it is learned.
    """

    offsets = ("log_precision",)

    def __init__(self, *, precision: float = 10.0) -> None:
        super().__init__()
        self.log_precision = nn.Parameter(torch.tensor(math.log(precision)))

    def forward(self, events: Tensor, surplus: Tensor, information: Tensor, targets: Tensor) -> Posterior:
        """Infers the preference and applies it to targets.

        Args:
            events: (R, L, D).
            surplus, information: (R, L), both zero for padding.
            targets: (R, P, D).
        """
        m = self.log_precision.exp()
        identity = torch.eye(events.shape[2], device=events.device, dtype=events.dtype)
        gram = events.transpose(1, 2) @ (events * information.unsqueeze(2))  # (R, D, D)
        found = torch.linalg.cholesky_ex(gram + m * identity)
        factor = found[0].masked_fill((found[1] > 0)[:, None, None], torch.nan)  # what cannot be factored shows in the loss
        preference = torch.cholesky_solve((events * surplus.unsqueeze(2)).sum(1).unsqueeze(2), factor)  # (R, D, 1)
        mean = (targets @ preference).squeeze(2)
        with torch.no_grad():
            whitened = torch.linalg.solve_triangular(factor, targets.transpose(1, 2), upper=False)  # (R, D, P)
            length = targets.square().sum(2)
            variance = torch.where(length > 0, m * whitened.square().sum(1) / length.clamp(min=1e-12), 1.0)
        return Posterior(mean, variance)
