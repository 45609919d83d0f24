"""One probability from relevance levels and click (PRECTR)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ClickProbability(NamedTuple):
    """Log probabilities of click and no click, (C,) each; `logit` is their difference."""

    log_click: Tensor
    log_no_click: Tensor

    @property
    def logit(self) -> Tensor:
        return self.log_click - self.log_no_click


class LevelMixture(nn.Module):
    r"""Click probability as the expectation over the relevance level, as the PRECTR paper states it.

    :math:`P(y = 1 | x) = \sum_k \pi_k \sigma(z_k)`, where :math:`\pi_k = P(l = k | q, i)` comes from the relevance tower and
    :math:`z_k` from the click tower. Both outcomes are computed in log space, so that no probability is ever rounded to 0 or
    1 and the binary cross-entropy :math:`-(y \log p_1 + (1 - y) \log p_0)` stays exact.

    Example::

        p = LevelMixture()(log_pi, z)  # (C, K), (C, K)
        loss = -(y * p.log_click + (1 - y) * p.log_no_click)
    """

    def forward(self, log_pi: Tensor, z: Tensor) -> ClickProbability:
        """Args: log_pi: (C, K) log probabilities of the levels; z: (C, K) click logits by level."""
        return ClickProbability(
            torch.logsumexp(log_pi + F.logsigmoid(z), dim=1), torch.logsumexp(log_pi + F.logsigmoid(-z), dim=1)
        )


def known_level_log_probabilities(log_pi: Tensor, level: Tensor, distribution: Tensor | None = None) -> Tensor:
    """Replaces the tower's distribution by what is known of the level.

    Every level keeps a trace, so that the logarithm stays finite.

    Args:
        log_pi: (C, K) the tower's.
        level: (C,) known level in 1..K, 0: not known.
        distribution: (C, K) probabilities where only these are known, zero where nothing is.

    Returns:
        (C, K) log probabilities.
    """
    num_levels = log_pi.shape[1]
    known = torch.full_like(log_pi, 1e-6 / max(num_levels - 1, 1))
    known.scatter_(1, (level - 1).clamp(min=0).unsqueeze(1), 1 - 1e-6)
    known = torch.where((level > 0).unsqueeze(1), known.log(), log_pi)
    if distribution is None:
        return known
    uncertain = (level == 0) & (distribution > 0).any(1)
    return torch.where(uncertain.unsqueeze(1), distribution.clamp(min=1e-3).log().log_softmax(1), known)


def grade_distributions(grade: Tensor, level_grades: Tensor) -> Tensor:
    """Distributions over the two levels that a grade lies between, with the grade as their expected grade.

    Args:
        grade: (N,); beyond the first or last level's grade it is that level.
        level_grades: (K,) ascending, the grade that stands for each level.

    Returns:
        (N, K) float32, NaN where the grade is.
    """
    passed = ((grade[:, None] - level_grades[:-1]) / level_grades.diff()).clamp(0, 1)  # (N, K - 1) of the way to the next level
    return (F.pad(passed, (1, 0), value=1.0) - F.pad(passed, (0, 1))).float()
