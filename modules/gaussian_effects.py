"""Coefficients with a Gaussian prior: learned as rows of a table, or inferred from sums over past events."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .mixture import LabelProbability

TINY = 1e-8
"""What is added to a variance before its root is taken."""

_PAIRS = (
    (1.1544053947399682, 0.2401231786050127),
    (2.366759410734541, 0.03075712396758652),
    (3.7504397177257425, 0.000548268855972217),
)
NODES = [(0.0, 0.45714285714285724), *((sign * node, weight) for node, weight in _PAIRS for sign in (1, -1))]
"""Of the Gauss-Hermite rule of seven nodes for a standard Gaussian, with their weights."""
LOG_NARROW = -2.0
"""Logarithm of the standard deviation of a row that nothing was learned of yet, in that of its prior."""


class GaussianRows(NamedTuple):
    """Coefficients of C candidates, each a Gaussian, independent of the others."""

    mean: Tensor
    """(C, D) float."""
    variance: Tensor
    """(C, D) float."""
    divergence: Tensor
    """(C,) float, from the prior."""


def expected_log_probability(
    mean: Tensor, variance: Tensor, at: Callable[[LabelProbability], LabelProbability] | None = None
) -> LabelProbability:
    r"""Of a click whose logit is Gaussian, :math:`E \log p_1(z)` and :math:`E \log p_0(z)`, by a quadrature.

    They are what is to be learned from, and no probabilities: their exponentials do not sum to 1.

    Args:
        mean: (C,) float.
        variance: (C,) float.
        at: makes :math:`p_1` and :math:`p_0` of :math:`\sigma(z)` and :math:`\sigma(-z)`, such as by a position; None: these.

    Example::

        certain = expected_log_probability(torch.tensor([0.3]), torch.zeros(1))
        assert torch.allclose(certain.log_yes, torch.tensor([0.3]).sigmoid().log(), atol=1e-4)
        assert expected_log_probability(torch.zeros(1), torch.ones(1)).log_yes < torch.tensor(0.5).log()
    """
    log_yes, log_no = torch.zeros_like(mean), torch.zeros_like(mean)
    for z, weight in _nodes(mean, variance):
        found = LabelProbability.from_logit(z)
        found = found if at is None else at(found)
        log_yes, log_no = log_yes + weight * found.log_yes, log_no + weight * found.log_no
    return LabelProbability(log_yes, log_no)


def expected_probability(mean: Tensor, variance: Tensor) -> LabelProbability:
    r"""Of a click whose logit is Gaussian, :math:`E \sigma(z)` by the same quadrature: nearer to a half than that of the mean.

    Args:
        mean: (C,) float.
        variance: (C,) float.

    Example::

        unsure = expected_probability(torch.tensor([2.0]), torch.ones(1))
        assert 0.5 < unsure.log_yes.exp() < torch.tensor(2.0).sigmoid()
    """
    nodes = [(z, math.log(weight)) for z, weight in _nodes(mean, variance)]
    yes = torch.stack([functional.logsigmoid(z) + weight for z, weight in nodes]).logsumexp(0)
    no = torch.stack([functional.logsigmoid(-z) + weight for z, weight in nodes]).logsumexp(0)
    return LabelProbability(yes, no)


def _nodes(mean: Tensor, variance: Tensor) -> list[tuple[Tensor, float]]:
    """(C,) logits and the weight of each node."""
    sd = (variance + TINY).sqrt()
    return [(mean + sd * node, weight) for node, weight in NODES]


class GaussianEffect(nn.Module):
    r"""Coefficients :math:`b_d \sim N(\sigma_d m_d, \sigma_d^2 s_d^2)` under the prior :math:`N(0, \sigma_d^2)`.

    A looked-up row is :math:`[m; \log s - c]` with a constant :math:`c`, so that a row of zeros is a narrow one around zero. It
    is in units of :math:`\sigma`: a row that clicks tell little of follows it, and need not be looked up for that. The divergence
    from the prior is

    .. math:: \sum_d \frac{m_d^2 + s_d^2 - 1}{2} - \log s_d,

    and :math:`\sigma` itself is a parameter that the clicks teach, the same on all ranks, as every parameter is.

    Args:
        dim: coefficients of a row.
        sd: :math:`\sigma` at the start, of all or of each that does not stay.
        fixed: how many of the last coefficients have a :math:`\sigma` that stays.
        fixed_sd: this one.

    Example::

        effect = GaussianEffect(3, fixed=1, fixed_sd=0.5)
        b = effect(torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]))
        assert b.mean.tolist() == [[1.0, 1.0, 0.5]] and b.variance.shape == (1, 3) and b.divergence.shape == (1,)
    """

    offsets = ("log_sd",)

    def __init__(self, dim: int, *, sd: float | Sequence[float] = 1.0, fixed: int = 0, fixed_sd: float = 1.0) -> None:
        super().__init__()
        self.dim, self.fixed, self.fixed_sd = dim, fixed, fixed_sd
        self.log_sd = nn.Parameter(torch.ones(dim - fixed).mul(torch.as_tensor(sd)).log()) if fixed < dim else None

    def prior_sd(self, like: Tensor) -> Tensor:
        r"""(dim,) :math:`\sigma`, of the kind of another tensor."""
        fixed = like.new_full((self.fixed,), self.fixed_sd)
        return fixed if self.log_sd is None else torch.cat([self.log_sd.exp(), fixed])

    def forward(self, rows: Tensor) -> GaussianRows:
        """The coefficients.

        Args:
            rows: (C, 2 dim) looked up.
        """
        mean, log_sd = rows[:, : self.dim], rows[:, self.dim : 2 * self.dim] + LOG_NARROW
        variance, prior = (2 * log_sd).exp(), self.prior_sd(rows)
        divergence = ((mean.square() + variance - 1) / 2 - log_sd).sum(1)
        return GaussianRows(mean * prior, variance * prior.square(), divergence)


class GaussianTitles(nn.Module):
    r"""Vectors of titles, sums of their words' over the root of their number, where a word's vector is a row of `GaussianEffect`.

    Of a title with the words :math:`w_1..w_n` that have vectors, it is the Gaussian of :math:`n^{-1/2} \sum_i b_{w_i}`. The
    divergence of all words from their prior, which stays a standard one, is spread over the candidates of the train part.

    Args:
        vocab_size: V.
        dim: width.
        words: ids of the tokens that have vectors.

    Example::

        titles = GaussianTitles(vocab_size=50, dim=8, words=[7, 8])
        vectors = titles(torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]))  # (N, W)
        assert vectors.mean.shape == (2, 8) and vectors.mean[1].eq(0).all() and vectors.variance[1].eq(0).all()
    """

    def __init__(self, vocab_size: int, dim: int, words: Sequence[int]) -> None:
        super().__init__()
        self.row: Tensor
        self.candidates: Tensor
        row = torch.zeros(vocab_size, dtype=torch.long)
        row[list(words)] = torch.arange(1, len(words) + 1)
        self.register_buffer("row", row, persistent=False)
        self.register_buffer("candidates", torch.tensor(1.0))
        self.effect = GaussianEffect(dim, fixed=dim)
        rows = max(len(words), 1)  # an empty table cannot be looked up in
        self.mean = nn.Parameter(0.3 * torch.randn(rows, dim))
        self.width = nn.Parameter(torch.zeros(rows, dim))

    def forward(self, tokens: Tensor) -> GaussianRows:
        """The vectors of titles, each with a candidate's share of the divergence.

        Args:
            tokens: (N, W) int64.
        """
        row = self.row[tokens]
        there = (row > 0).float()
        scale = there.sum(1, keepdim=True).clamp(min=1.0).rsqrt()
        words = self.effect(torch.cat([self.mean, self.width], dim=1))
        mean, variance = (
            functional.embedding_bag((row - 1).clamp(min=0), vectors, per_sample_weights=there, mode="sum")
            for vectors in (words.mean, words.variance)
        )
        divergence = words.divergence.sum() / self.candidates
        return GaussianRows(mean * scale, variance * scale.square(), divergence.expand(tokens.shape[0]))

    def words(self) -> tuple[Tensor, Tensor]:
        """(n,) int64 tokens that have vectors, and the means of these, (n, dim)."""
        tokens = self.row.nonzero().squeeze(1)
        means = self.effect(torch.cat([self.mean, self.width], dim=1)).mean
        return tokens, means[self.row[tokens] - 1]


class EffectsPosterior(NamedTuple):
    """Coefficients as of R requests."""

    mean: Tensor
    """(R, D) float."""
    covariance: Tensor
    """(R, D, D) float."""


def effects_posterior(sums: Tensor, variance: Tensor) -> EffectsPosterior:
    r"""Coefficients by sums over strictly past events, with the prior :math:`N(0, \mathrm{diag}(\sigma^2))`.

    An event's log likelihood, a parabola around what was inferred at its moment or around zero, adds to :math:`S` what is linear
    in the coefficients, and to :math:`I` its information. The posterior has the mean
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
