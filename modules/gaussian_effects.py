"""Coefficients with a Gaussian prior: learned as rows of a table, or inferred from sums over past events."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

NARROW = math.exp(-2)
"""The standard deviation of a row that nothing was learned of yet, in that of its prior at the start."""


class GaussianEffect(nn.Module):
    r"""Coefficients :math:`b \sim N(m, \mathrm{diag}(s^2))` under the prior :math:`N(0, \mathrm{diag}(\sigma^2))`.

    A looked-up row is :math:`[m; \log s - c]` with a constant :math:`c`, so that a row of zeros is a narrow one around zero. The
    divergence from the prior is

    .. math:: \sum_d \frac{m_d^2 + s_d^2}{2 \sigma_d^2} + \log \frac{\sigma_d}{s_d} - \frac{1}{2}.

    Spread over the row's occurrences it is least for :math:`\sigma_d^2` the mean of :math:`m_d^2 + s_d^2` over the rows: as a
    parameter, :math:`\sigma` is estimated by gradient, and is the same on all ranks, as every parameter is.

    Args:
        dim: coefficients of a row.
        sd: :math:`\sigma` at the start.

    Example::

        effect = GaussianEffect(2)
        b, divergence = effect(torch.zeros(3, 4))
        assert b.shape == (3, 2) and divergence.shape == (3,)
        assert effect.eval()(torch.zeros(3, 4))[0].eq(0).all()  # the mean
    """

    offsets = ("log_sd",)

    def __init__(self, dim: int, *, sd: float = 1.0) -> None:
        super().__init__()
        self.dim, self.start = dim, math.log(sd * NARROW)
        self.log_sd = nn.Parameter(torch.full((dim,), math.log(sd)))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (C, dim), drawn in training and the mean else, and the divergence (C,).

        Args:
            rows: (C, 2 dim) looked up.
        """
        mean, log_sd = rows[:, : self.dim], rows[:, self.dim : 2 * self.dim] + self.start
        if not self.training:
            return mean, torch.zeros_like(mean[:, 0])
        sd = log_sd.exp()
        scaled = (mean.square() + sd.square()) / (2 * self.log_sd).exp()
        return mean + sd * torch.randn_like(mean), (scaled / 2 + self.log_sd - log_sd - 0.5).sum(1)


class EffectsPosterior(NamedTuple):
    """Coefficients as of R requests."""

    mean: Tensor
    """(R, D) float."""
    covariance: Tensor
    """(R, D, D) float."""


def effects_posterior(sums: Tensor, variance: Tensor) -> EffectsPosterior:
    r"""One Newton step from the prior :math:`N(0, \mathrm{diag}(\sigma^2))` by the sums over strictly past events.

    An event of vector :math:`x` and click :math:`y`, of probability :math:`e` by everything but these coefficients, adds
    :math:`(y - e) x` to :math:`S` and :math:`e (1 - e) x x^T` to :math:`I`. The posterior has the mean
    :math:`(I + \mathrm{diag}(1 / \sigma^2))^{-1} S` and that inverse as covariance. Without events it is the prior.

    Args:
        sums: (R, D + D (D + 1) / 2) float, S and then the upper triangle of I, row by row.
        variance: (D,) float, of the prior.

    Raises:
        ValueError: the sums are of another number of coefficients.

    Example::

        sums = torch.tensor([[0.5, -0.5, 3.0, 0.0, 3.0], [0.0] * 5])  # D = 2; of the second, nothing was seen
        found = effects_posterior(sums, variance=torch.ones(2))
        assert torch.allclose(found.mean, torch.tensor([[0.125, -0.125], [0.0, 0.0]]))
        assert torch.allclose(found.covariance[1], torch.eye(2))
    """
    D = variance.shape[0]
    if sums.shape[1] != D + D * (D + 1) // 2:
        raise ValueError(f"sums of {D} coefficients are {D + D * (D + 1) // 2} numbers, not {sums.shape[1]}")
    rows, columns = torch.triu_indices(D, D, device=sums.device)
    precision = torch.diag(1 / variance).repeat(len(sums), 1, 1)
    upper = sums.new_zeros(len(sums), D, D)
    upper[:, rows, columns] = sums[:, D:]
    precision = precision + upper + upper.triu(1).transpose(1, 2)
    covariance = torch.cholesky_inverse(torch.linalg.cholesky_ex(precision)[0])
    return EffectsPosterior((covariance @ sums[:, :D].unsqueeze(2)).squeeze(2), covariance)
