"""Mixed effects: a logistic regression whose rows for users, queries, groups and items have Gaussian priors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..inputs import Inputs
from ..mixture import ClickProbability, grade_distributions
from ..parts.base import Given, ReportedPart
from .base import Predictions, RankingModel

SUFFIX = "_effect"
"""A looked-up feature whose name ends so has rows of effects; all other features of candidates are vectors of the item."""
_COUNTED = {"user": "user", "query": "query", "group": "query's group", "item": "item"}
_WHOSE = {f"{who}{SUFFIX}": f"the row of the {what}" for who, what in _COUNTED.items()}
OCCURRENCES = {f"{who}{SUFFIX}": f"{who}_trained" for who in _COUNTED}
"""What is counted of how often the rows of a feature are trained on."""
INPUTS = "inputs_of_effects"
"""What is reported of x."""
NARROW = math.exp(-1)
"""The standard deviation of a row that nothing was learned of yet, in that of its prior at the start."""


@dataclass
class MixedFindings:
    """What `MixedEffects` finds on its way to a score."""

    divergence: Tensor
    """(C,) each candidate's share of the divergence of the rows from their priors; zero in evaluation mode."""
    x: Tensor
    """(C, 2 + rank) what coefficients are multiplied with: one, the grade from the middle of the grades, the item's vector."""
    by_effect: dict[str, Tensor]
    """(C,) by feature, what its row adds to the logit."""


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


class MixedEffects(RankingModel):
    r"""The click logit from the grade, and from rows of coefficients with a prior.

    Of a candidate, let :math:`g` be the visible grade, else the mean of the predicted levels, else the middle of the grades,
    :math:`v` the sum of the vectors of its title words and attributes, and :math:`x = [1; g; v]` with :math:`g` from the middle
    of the grades. With a row :math:`b_n` for each feature :math:`n` of effects, such as user, query, group and item, which has
    a coefficient for all of :math:`x` or for its first elements, a function :math:`f` that is linear between knots, and a bias
    of the position :math:`p` that was logged,

    .. math:: z = f(g) + \sum_n b_n \cdot x, \quad P(y = 1 | x, p) = \sigma(z + \mathrm{bias}_p)

    (generalised linear mixed models of search: GLMix, KDD 2016). The user's row holds an offset, how much more than others this
    user wants of relevance, and a taste. Rows are drawn while training and are their means when scoring; see `GaussianEffect`.
    The vectors have the prior :math:`N(0, 1)`, an item at a time. It reads neither texts nor a past.

    Args:
        effects: feature -> coefficients of a row.
        vectors: features that are vectors of the item, of width `rank` each.
        rank: width of v.
        level_grades: (K,) the grade that stands for each level.
        grade_range: lowest and highest grade.
        position_count: positions with a bias of their own, deeper ones share the last; 0: the position has no part.

    Example::

        effects = {"user_effect": 3, "item_effect": 2}
        model = MixedEffects(effects, ["brand_id"], rank=1, level_grades=[1.0, 3.0], grade_range=(1.0, 3.0))
        candidate = {
            "item_effect": torch.zeros(2, 4), "brand_id": torch.randn(2, 1), "item_trained": torch.ones(2, 1),
            "relevance": torch.tensor([2.5, torch.nan]), "predicted": torch.zeros(2, 2), "position": torch.tensor([1, 2]),
        }
        request = {"user_effect": torch.zeros(1, 6), "user_trained": torch.ones(1, 1)}
        inputs = Inputs(request, candidate, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        predictions = model(inputs)
        assert predictions.own.divergence.shape == predictions.ranking["click"].logit.shape == (2,)
    """

    offsets = ("by_grade", "position_bias")

    def __init__(
        self,
        effects: Mapping[str, int],
        vectors: Sequence[str],
        *,
        rank: int,
        level_grades: Sequence[float],
        grade_range: tuple[float, float],
        position_count: int = 50,
    ) -> None:
        super().__init__()
        K = len(level_grades)
        self.vectors, self.rank, self.position_count = tuple(vectors), rank, position_count
        self.effects = nn.ModuleDict({name: GaussianEffect(dim) for name, dim in effects.items()})
        self.reported = {name: ReportedPart(f"what {_WHOSE[name]} adds to the click logit", signed=True) for name in effects}
        self.reported[INPUTS] = ReportedPart("what rows of effects are multiplied with", width=2 + rank, where="predictions")
        self.level_grades: Tensor
        self.knots: Tensor
        self.register_buffer("level_grades", torch.tensor(level_grades), persistent=False)
        self.register_buffer("knots", torch.linspace(*grade_range, K), persistent=False)
        self.by_grade = nn.Parameter(torch.cat([torch.linspace(-2.0, -0.5, K), torch.zeros(K)]))
        self.position_bias = nn.Parameter(torch.zeros(position_count + 1))

    @classmethod
    def build(cls, given: Given, **settings: Any) -> MixedEffects:
        """As of `RankingModel`: `position_bias` and `position_count`.

        Raises:
            ValueError: rows or vectors have widths that do not fit together, or there are rows of what is not counted.
        """
        candidate, request = given.widths.candidate, given.widths.request
        looked_up = {name: width for name, width in (request | candidate).items() if name.endswith(SUFFIX)}
        vectors = {name: width for name, width in candidate.items() if name not in looked_up}
        rank = max(vectors.values(), default=0)
        if len(set(vectors.values())) > 1:
            raise ValueError(f"the vectors of an item need tables of one width; got {vectors}")
        for name, width in looked_up.items():
            if name not in OCCURRENCES:
                raise ValueError(f"no occurrences are counted for {name}; valid: {', '.join(OCCURRENCES)}")
            if width > 2 * (2 + rank):
                most = 2 * (2 + rank)
                raise ValueError(f"a row of {name} is {width} wide, and {most} are read: mean and width of 2 + {rank}")
        positions = settings["position_count"] if settings["position_bias"] else 0
        dims = {name: width // 2 for name, width in looked_up.items()}
        grades, bounds = given.level_grades, given.grade_range
        return cls(dims, list(vectors), rank=rank, level_grades=grades, grade_range=bounds, position_count=positions)

    @torch.no_grad()
    def start_from(self, examination: Sequence[float]) -> None:
        """As of `RankingModel`: the bias of a position starts from the logarithm of its examination."""
        given = torch.tensor(examination, device=self.position_bias.device).log()
        place = torch.arange(-1, self.position_count, device=given.device).clamp(0, len(given) - 1)
        self.position_bias.copy_(given[place])

    def forward(self, inputs: Inputs) -> Predictions:
        """Scores every candidate."""
        by_grade, x = self._read(inputs)
        occurrences = {name: inputs.rows([OCCURRENCES[name]]).squeeze(1).clamp(min=1) for name in self.effects}
        divergence = torch.zeros_like(by_grade)
        added: dict[str, Tensor] = {}
        for name, effect in self.effects.items():
            b, diverged = effect(inputs.rows([name]))
            added[name] = (b * x[:, : b.shape[1]]).sum(1)
            divergence = divergence + diverged / occurrences[name]
        if self.training and self.vectors:
            of_item = inputs.candidate["item_trained"].squeeze(1).clamp(min=1)
            divergence = divergence + x[:, 2:].square().sum(1) / 2 / of_item
        z = by_grade + sum(added.values())
        position = inputs.candidate["position"].clamp(max=self.position_count)
        bias = self.position_bias - self.position_bias[min(1, self.position_count)]
        logged = z + bias[position].masked_fill(position == 0, 0.0)
        findings = MixedFindings(divergence, x, added)
        parts = {**added, INPUTS: x} if self.reports_parts and not self.training else {}
        return Predictions(
            {"click": ClickProbability.from_logit(z)}, {"click": ClickProbability.from_logit(logged)}, parts, findings
        )

    def variance(self, effect: str) -> Tensor:
        """(dim,) of the prior of a feature's rows."""
        return (2 * cast(GaussianEffect, self.effects[effect]).log_sd.detach()).exp()

    def _read(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """(C,) f(g), and x (C, 2 + rank)."""
        given, predicted = inputs.candidate["relevance"], inputs.candidate["predicted"]
        middle = (self.knots[0] + self.knots[-1]) / 2
        expected = torch.where(predicted.sum(1) > 0, predicted @ self.level_grades, middle)
        missing = given.isnan()
        grade = torch.where(missing, expected, given)
        basis = grade_distributions(grade, self.knots)  # (C, K)
        f = torch.cat([basis, basis * missing.unsqueeze(1)], dim=1) @ self.by_grade
        x = torch.stack([torch.ones_like(grade), grade - middle], dim=1)
        vector = sum((inputs.candidate[name] for name in self.vectors), x.new_zeros(len(x), self.rank))
        return f, torch.cat([x, vector], dim=1)
