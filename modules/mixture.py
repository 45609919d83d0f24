"""One probability from relevance levels and click (PRECTR)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LabelProbability(NamedTuple):
    """Log probabilities of both values of a label, kept apart so that neither is rounded to 0; of C candidates, or by level."""

    log_yes: Tensor
    """(C,) or (C, K) float, log P(y = 1)."""
    log_no: Tensor
    """(C,) or (C, K) float, log P(y = 0)."""
    log_stop: Tensor | None = None
    """(C,) or (C, K) float, of a label that follows another one: log of the probability that this other one is 1, and it is 0."""

    @classmethod
    def from_logit(cls, logit: Tensor) -> LabelProbability:
        """Of (C,) or (C, K) float logits."""
        return cls(F.logsigmoid(logit), F.logsigmoid(-logit))

    def then(self, logit: Tensor) -> LabelProbability:
        """Of a label that may be 1 only where this one is; its logits where this one is 1 are of the same shape."""
        stop = self.log_yes + F.logsigmoid(-logit)
        return LabelProbability(self.log_yes + F.logsigmoid(logit), torch.logaddexp(self.log_no, stop), stop)

    @property
    def logit(self) -> Tensor:
        """(C,) or (C, K) float, the difference: what ranks."""
        return self.log_yes - self.log_no


def label_chain(logits: Mapping[str, Tensor], after: Mapping[str, str]) -> dict[str, LabelProbability]:
    r"""Labels that follow one another, such as click, cart and order, each over all candidates.

    With the logit :math:`z_m` of label m where the label before it is 1, and :math:`a(m)` that label, the probability over all
    candidates is :math:`P_m = P_{a(m)} \, \sigma(z_m)`, so that each label learns from every candidate that was shown (the entire
    space of ESMM, arXiv 1804.07931). Both values in log space:

    .. math:: \log p_1^m = \log p_1^{a(m)} + \log \sigma(z_m), \quad
        \log p_0^m = \mathrm{logaddexp}(\log p_0^{a(m)}, \log p_1^{a(m)} + \log \sigma(-z_m)).

    Args:
        logits: of `click` and of each label where the one before it is 1, of one shape.
        after: label -> what comes before it, `click` or another label.

    Returns:
        By label, the click first.

    Example::

        logits = {"click": torch.tensor([0.0]), "cart": torch.tensor([0.0]), "order": torch.tensor([0.0])}
        p = label_chain(logits, {"cart": "click", "order": "cart"})
        assert torch.allclose(p["order"].log_yes.exp(), torch.tensor([0.125]))
        assert torch.allclose(p["order"].log_no.exp(), torch.tensor([0.875]))
    """
    found = {"click": LabelProbability.from_logit(logits["click"])}

    def of(label: str) -> LabelProbability:
        if label not in found:
            found[label] = of(after[label]).then(logits[label])
        return found[label]

    return {label: of(label) for label in ("click", *after)}


class LevelMixture(nn.Module):
    r"""Click probability as the expectation over the relevance level, the one probability of PRECTR (arXiv 2503.18395).

    Let :math:`y` be the click, 0 or 1, :math:`x` all that is known of a candidate, and :math:`l \in 1..K` its relevance level.
    With :math:`\pi_k = P(l = k | q, i)` of query q and item i, from the relevance tower, and the click logit :math:`z_k` at
    level k, from the click tower,

    .. math:: P(y = 1 | x) = \sum_{k = 1}^K \pi_k \, \sigma(z_k).

    Both outcomes are computed in log space, :math:`\log p_1 = \mathrm{logsumexp}_k(\log \pi_k + \log \sigma(z_k))` and
    :math:`\log p_0 = \mathrm{logsumexp}_k(\log \pi_k + \log \sigma(-z_k))`, so that no probability is ever rounded to 0 or 1 and
    the binary cross-entropy :math:`-(y \log p_1 + (1 - y) \log p_0)` stays exact; this form is re-derived here.

    Example::

        log_pi = torch.tensor([[0.7, 0.3], [0.1, 0.9]]).log()  # (C, K)
        z = torch.tensor([[-2.0, 1.0], [-2.0, 1.0]])  # (C, K)
        p = LevelMixture()(log_pi, z)
        assert p.logit[1] > p.logit[0]  # likelier to be of the level that is clicked more
        click = torch.tensor([0.0, 1.0])
        loss = -(click * p.log_yes + (1 - click) * p.log_no).mean()
    """

    def forward(self, log_pi: Tensor, z: Tensor) -> LabelProbability:
        """Mixes the levels.

        Args:
            log_pi: (C, K) float, log probabilities of the levels.
            z: (C, K) float, click logits by level.

        Returns:
            (C,) float each.
        """
        return self.mean(log_pi, LabelProbability.from_logit(z))

    def mean(self, log_pi: Tensor, by_level: LabelProbability) -> LabelProbability:
        """The same of any label's probability by level, (C, K) float each."""
        outcomes = (outcome for outcome in by_level if outcome is not None)
        return LabelProbability(*(torch.logsumexp(log_pi + outcome, dim=1) for outcome in outcomes))


def known_level_log_probabilities(log_pi: Tensor, level: Tensor, distribution: Tensor | None = None) -> Tensor:
    """Replaces the tower's distribution by what is known of the level.

    Every level keeps a trace, so that the logarithm stays finite.

    Args:
        log_pi: (C, K) float, the tower's log probabilities.
        level: (C,) int64, known level in 1..K, 0: not known.
        distribution: (C, K) float, probabilities where only these are known, zero where nothing is.

    Returns:
        (C, K) float, log probabilities.

    Example::

        log_pi = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
        known = known_level_log_probabilities(log_pi, torch.tensor([0, 2]))
        assert torch.allclose(known.exp(), torch.tensor([[0.5, 0.5], [0.0, 1.0]]), atol=1e-5)
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
        grade: (N,) float; beyond the first or last level's grade it is that level.
        level_grades: (K,) float, ascending, the grade that stands for each level.

    Returns:
        (N, K) float32, NaN where the grade is.

    Example::

        level_grades = torch.tensor([1.0, 2.0, 3.0])
        assert grade_distributions(torch.tensor([2.25]), level_grades).tolist() == [[0.0, 0.75, 0.25]]
    """
    passed = ((grade[:, None] - level_grades[:-1]) / level_grades.diff()).clamp(0, 1)  # (N, K - 1) of the way to the next level
    return (F.pad(passed, (1, 0), value=1.0) - F.pad(passed, (0, 1))).float()
