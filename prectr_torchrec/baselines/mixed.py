"""`mixed`: a mixed-effects logistic regression, fitted by variational inference."""

from __future__ import annotations

from functools import partial
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import embedding

from prectr_torchrec.baselines.samples import BaselineConfig
from prectr_torchrec.baselines.vocabulary import Pairs
from prectr_torchrec.modules import Examination, expected_log_probability
from prectr_torchrec.system.progress import counted


class MixedConfig(BaselineConfig):
    """Settings of the mixed-effects regression."""

    epochs: int = Field(32, ge=1)
    batch_size: int = Field(1024, ge=1)
    lr: float = Field(0.02, gt=0)
    rank: int = Field(6, ge=1)
    """Taste factors."""
    word_share: float = Field(0.0075, gt=0, le=1)
    """A word has a taste vector when at least this share of the training titles contains it."""
    users: Literal["posterior", "rows"] = "posterior"
    """What a user is scored with: the posterior as of the request (`posterior.py`), or the rows fitted on the training part."""


class GaussianTable(nn.Module):
    r"""A table with rows :math:`N(m_n, \mathrm{diag}(s_n^2))` under the prior :math:`N(0, \mathrm{diag}(\sigma^2))`.

    The divergence of a row from its prior is spread over the row's occurrences in the training part, so that the rows of a batch
    bring their shares of it.

    Args:
        occurrences: (N,) how often each row occurs in training.
        dim: width of a row.
        variance: of the prior, at the start.
        scale: standard deviation of the means at the start.
        generator: of the means at the start.
    """

    variance: Tensor
    occurrences: Tensor

    def __init__(self, occurrences: Tensor, dim: int, *, variance: float, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        mean = torch.randn(len(occurrences), dim, generator=generator) * scale * (occurrences > 0).unsqueeze(1)
        mean[0] = 0
        self.mean = nn.Parameter(mean)
        self.log_sd = nn.Parameter(torch.full_like(mean, -2.0))
        self.register_buffer("variance", torch.full((dim,), variance))
        self.register_buffer("occurrences", occurrences.float())

    def at(self, index: Tensor) -> Tensor:
        """(..., D) the means."""
        return embedding(index, self.mean)

    def moments(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., D) means and variances, and the scalar share of the divergence."""
        mean, log_sd = self.at(index), embedding(index, self.log_sd)
        variance = (2 * log_sd).exp()
        divergence = ((variance + mean.square()) / self.variance / 2 - log_sd).sum(-1)
        return mean, variance, (divergence / self.occurrences[index].clamp(min=1)).sum()

    @torch.no_grad()
    def estimate_variance(self) -> None:
        """Sets the prior's variance to the mean square of the rows that occur."""
        there = self.occurrences > 0
        if there.any():
            self.variance.copy_((self.mean[there].square() + self.log_sd[there].exp().square()).mean(0).clamp(min=1e-3))


class MixedEffects(nn.Module):
    r"""Click logit of user u, query q of group c, and item i with the grade g:

    .. math:: f(g) + (a_u + a_q + a_c) + (b_u + b_q + b_c) g + \mathrm{quality}_i + t_u \cdot v_i

    with :math:`f` piecewise linear, another one where the grade is predicted, and :math:`v_i` the sum of the vectors of the
    item's frequent title words and attributes (generalised linear mixed models of search: GLMix, KDD 2016). A click needs the
    logged position to be looked at (`Examination`). What is learned from is the expected log likelihood over the rows; scores
    are those of their means.

    Args:
        occurrences: table -> (N,) occurrences of its rows in training, for `user`, `query`, `group`, `item`, `word` and each of
            `attributes`.
        attributes: the item attributes.
        levels: K, knots of f.
        positions: the deepest logged position.
    """

    def __init__(
        self, occurrences: dict[str, Tensor], attributes: tuple[str, ...], levels: int, positions: int, config: MixedConfig
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)

        def rows(table: str, dim: int, variance: float = 1.0, scale: float = 0.0) -> GaussianTable:
            return GaussianTable(occurrences[table], dim, variance=variance, scale=scale, generator=generator)

        self.attributes = attributes
        self.user, self.query, self.group = rows("user", 2), rows("query", 2, 0.25), rows("group", 2)
        self.quality = rows("item", 1, 0.25)
        self.taste = rows("user", config.rank, scale=0.05)
        self.word = rows("word", config.rank, scale=0.3)
        self.attribute = nn.ModuleDict({name: rows(name, config.rank, scale=0.3) for name in attributes})
        self.by_grade = nn.Parameter(torch.cat([torch.linspace(-2.0, -0.5, levels), torch.zeros(levels)]))
        self.position = Examination(max(positions, 1))

    def forward(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """(n,) means and variances of the logits at the reference position, and the batch's share of the divergence."""
        tables = {"user": self.user, "query": self.query, "group": self.group}
        vector, spread, divergence = self._vectors(pairs)
        taste, taste_variance, diverged = self.taste.moments(pairs.rows["user"])
        quality, variance, also = self.quality.moments(pairs.rows["item"])
        logit = pairs.grade @ self.by_grade + quality.squeeze(1) + (taste * vector).sum(1)
        of_product = taste.square() * spread + taste_variance * (vector.square() + spread)
        variance, divergence = variance.squeeze(1) + of_product.sum(1), divergence + diverged + also
        for name, table in tables.items():
            row, row_variance, diverged = table.moments(pairs.rows[name])
            logit = logit + (pairs.slope * row).sum(1)
            variance = variance + (pairs.slope.square() * row_variance).sum(1)
            divergence = divergence + diverged
        return logit, variance, divergence

    @torch.no_grad()
    def score(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """At the means, without position.

        Returns:
            (n,) the logit without the user, (n, 2 + rank) what the user's offset, slope and taste are multiplied with, and
            (n, 2 + rank) the user's fitted row.
        """
        rows, user = pairs.rows, pairs.rows["user"]
        wanted = self.query.at(rows["query"]) + self.group.at(rows["group"])
        slow = pairs.grade @ self.by_grade + (pairs.slope * wanted).sum(1) + self.quality.at(rows["item"]).squeeze(1)
        vector, _, _ = self._vectors(pairs)
        return slow, torch.cat([pairs.slope, vector], 1), torch.cat([self.user.at(user), self.taste.at(user)], 1)

    @property
    def user_variance(self) -> Tensor:
        """(2 + rank,) the estimated prior variance of a user's offset, slope and taste."""
        return torch.cat([self.user.variance, self.taste.variance])

    def estimate_variances(self) -> None:
        for table in (self.user, self.query, self.group, self.quality, self.taste):
            table.estimate_variance()

    def _vectors(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """(n, rank) means and variances of the items' vectors, and their share of the divergence."""
        words, of_words, divergence = self.word.moments(pairs.words)
        weight = pairs.word_weight.unsqueeze(2)
        mean, variance = (words * weight).sum(1), (of_words * weight.square()).sum(1)
        for name in self.attributes:
            row, row_variance, diverged = cast(GaussianTable, self.attribute[name]).moments(pairs.rows[name])
            mean, variance, divergence = mean + row, variance + row_variance, divergence + diverged
        return mean, variance, divergence


def fit_mixed(model: MixedEffects, pairs: Pairs, click: Tensor, config: MixedConfig) -> None:
    """Fits a model in place: Adam under a one-cycle rate; prior variances are estimated after each epoch past the first quarter.

    Args:
        pairs: of the training part.
        click: (n,) 0 or 1.
    """
    generator = torch.Generator().manual_seed(config.seed)
    size = min(config.batch_size, len(click))
    steps = len(click) // size
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.epochs * steps, pct_start=0.1)
    for epoch in counted(range(config.epochs), "fitting", "epochs"):
        for batch in torch.randperm(len(click), generator=generator)[: steps * size].view(steps, size):
            taken = pairs.take(batch)
            mean, variance, divergence = model(taken)
            expected, y = expected_log_probability(mean, variance, partial(model.position, position=taken.position)), click[batch]
            loss = divergence - (y * expected.log_yes + (1 - y) * expected.log_no).sum()
            optimizer.zero_grad()
            (loss / size).backward()
            optimizer.step()
            schedule.step()
        if epoch >= config.epochs // 4:
            model.estimate_variances()
