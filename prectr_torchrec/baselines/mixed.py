"""`mixed`: a mixed-effects logistic regression, fitted by variational inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, embedding

from prectr_torchrec.baselines.samples import BaselineConfig
from prectr_torchrec.baselines.vocabulary import Pairs
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


class GaussianRows(nn.Module):
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

    def sample(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(..., D) drawn rows, and the scalar share of their divergence."""
        mean, log_sd = self.at(index), embedding(index, self.log_sd)
        sd = log_sd.exp()
        divergence = ((sd.square() + mean.square()) / self.variance / 2 - log_sd).sum(-1)
        drawn = mean + sd * torch.randn(mean.shape, generator=generator)
        return drawn, (divergence / self.occurrences[index].clamp(min=1)).sum()

    @torch.no_grad()
    def estimate_variance(self) -> None:
        """Sets the prior's variance to the mean square of the rows that occur."""
        there = self.occurrences > 0
        if there.any():
            self.variance.copy_((self.mean[there].square() + self.log_sd[there].exp().square()).mean(0).clamp(min=1e-3))


LookUp = Callable[[GaussianRows, Tensor], Tensor]


class MixedEffects(nn.Module):
    r"""Click logit of user u, query q of group c, and item i with the grade g:

    .. math:: f(g) + (a_u + a_q + a_c) + (b_u + b_q + b_c) g + \mathrm{quality}_i + t_u \cdot v_i + \mathrm{bias}_{position}

    with :math:`f` piecewise linear, another one where the grade is predicted, and :math:`v_i` the sum of the vectors of the
    item's frequent title words and attributes (generalised linear mixed models of search: GLMix, KDD 2016). Rows are drawn while
    training, and are their means when scoring.

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

        def rows(table: str, dim: int, variance: float = 1.0, scale: float = 0.0) -> GaussianRows:
            return GaussianRows(occurrences[table], dim, variance=variance, scale=scale, generator=generator)

        self.attributes = attributes
        self.user, self.query, self.group = rows("user", 2), rows("query", 2, 0.25), rows("group", 2)
        self.quality = rows("item", 1, 0.25)
        self.taste = rows("user", config.rank, scale=0.05)
        self.word = rows("word", config.rank, scale=0.3)
        self.attribute = nn.ModuleDict({name: rows(name, config.rank, scale=0.3) for name in attributes})
        self.by_grade = nn.Parameter(torch.cat([torch.linspace(-2.0, -0.5, levels), torch.zeros(levels)]))
        self.position_bias = nn.Parameter(torch.zeros(positions + 1))

    def forward(self, pairs: Pairs, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Logits (n,) at the logged positions with drawn rows, and the batch's share of the divergence."""
        divergences = []

        def draw(table: GaussianRows, index: Tensor) -> Tensor:
            drawn, divergence = table.sample(index, generator)
            divergences.append(divergence)
            return drawn

        user, taste = (draw(table, pairs.rows["user"]) for table in (self.user, self.taste))
        slow, vector = self._without_user(pairs, draw)
        logit = slow + (pairs.slope * user).sum(1) + (taste * vector).sum(1)
        return logit + self.position_bias[pairs.position], torch.stack(divergences).sum()

    @torch.no_grad()
    def score(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """At the means, without position.

        Returns:
            (n,) the logit without the user, (n, 2 + rank) what the user's offset, slope and taste are multiplied with, and
            (n, 2 + rank) the user's fitted row.
        """
        slow, vector = self._without_user(pairs, GaussianRows.at)
        user = pairs.rows["user"]
        return slow, torch.cat([pairs.slope, vector], 1), torch.cat([self.user.at(user), self.taste.at(user)], 1)

    @property
    def user_variance(self) -> Tensor:
        """(2 + rank,) the estimated prior variance of a user's offset, slope and taste."""
        return torch.cat([self.user.variance, self.taste.variance])

    def estimate_variances(self) -> None:
        for table in (self.user, self.query, self.group, self.quality, self.taste):
            table.estimate_variance()

    def _without_user(self, pairs: Pairs, look_up: LookUp) -> tuple[Tensor, Tensor]:
        rows = pairs.rows
        vector = (look_up(self.word, pairs.words) * pairs.word_weight.unsqueeze(2)).sum(1)
        for name in self.attributes:
            vector = vector + look_up(cast(GaussianRows, self.attribute[name]), rows[name])
        wanted = look_up(self.query, rows["query"]) + look_up(self.group, rows["group"])
        quality = look_up(self.quality, rows["item"]).squeeze(1)
        return pairs.grade @ self.by_grade + (pairs.slope * wanted).sum(1) + quality, vector


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
            logit, divergence = model(pairs.take(batch), generator)
            loss = binary_cross_entropy_with_logits(logit, click[batch], reduction="sum") + divergence
            optimizer.zero_grad()
            (loss / size).backward()
            optimizer.step()
            schedule.step()
        if epoch >= config.epochs // 4:
            model.estimate_variances()
