"""What past clicks say of a preference vector, in closed form."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Posterior(NamedTuple):
    """What is known of a preference along each of P targets of R requests, or along C candidates."""

    mean: Tensor
    """(R, P) or (C,) float, expected preference for each target, in logits; 0 where nothing is known."""
    variance: Tensor
    """(R, P) or (C,) float, what is still open, as a share of the prior's; 1 where nothing is known. Without gradient."""


class GaussianPosterior(nn.Module):
    r"""Bayesian linear regression of click surplus on event vectors, one small system for each request.

    An event :math:`j` has a vector :math:`\phi_j` of width D, the click :math:`c_j` (0 or 1) and an expected click rate
    :math:`p_j`; from these come its surplus :math:`a_j = c_j - p_j` and its information :math:`v_j = p_j (1 - p_j)`. Let a
    preference :math:`u \sim N(0, I / m)` of precision :math:`m` be added to the click logit as :math:`u \cdot \phi`. To first
    order its posterior is normal, of mean :math:`\hat u` and covariance :math:`A^{-1}`:

    .. math:: \hat u = A^{-1} \sum_j a_j \phi_j, \quad A = m I + \sum_j v_j \phi_j \phi_j^T.

    A target :math:`\phi` gets :math:`\hat u \cdot \phi` and, as a share of the prior's variance along it,
    :math:`m \, \phi^T A^{-1} \phi / |\phi|^2`. Unlike attention, whose weights sum to one, it knows how much was seen: few events
    leave it near the prior, many similar ones count as one. Re-derived here; Kalman-filter attention (arXiv 2010.00985) is the
    model for it.

    Args:
        precision: m at the start; it is learned.

    Example::

        events = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # (R, L, D)
        surplus = torch.tensor([[0.8, -0.2]])  # the first was clicked, the second passed over, at a rate of 0.2
        information = torch.full((1, 2), 0.16)
        targets = torch.eye(2).unsqueeze(0)  # (R, P, D)
        taste = GaussianPosterior(precision=1.0)(events, surplus, information, targets)
        assert taste.mean[0, 0] > 0 > taste.mean[0, 1]
        assert (taste.variance < 1).all()
    """

    offsets = ("log_precision",)

    def __init__(self, *, precision: float = 10.0) -> None:
        super().__init__()
        self.log_precision = nn.Parameter(torch.tensor(math.log(precision)))

    def forward(self, events: Tensor, surplus: Tensor, information: Tensor, targets: Tensor) -> Posterior:
        """Infers the preference and applies it to targets.

        Args:
            events: (R, L, D) float.
            surplus: (R, L) float, zero for padding.
            information: (R, L) float, zero for padding.
            targets: (R, P, D) float.

        Returns:
            (R, P) float each. NaN for a request whose system cannot be solved, so that it shows in the loss.
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
