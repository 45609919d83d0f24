"""The anchor: the level distribution on the grade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..inputs import Inputs
from ..mixture import grade_distributions
from ..rankers.base import Predictions
from .base import Label, Loss, weighted_mean


class Anchor(Loss):
    """Cross-entropy of the relevance tower's level distribution on what the grade says, where there is one.

    See `anchor_loss`. Of a model's findings it reads `text.relevance.log_pi`.

    Args:
        level_grades: (K,) the grade that stands for each level: a grade is a distribution over the two levels that it lies
            between. None: a grade is its level.

    Example::

        from types import SimpleNamespace

        relevance = Relevance(hidden=torch.zeros(2, 8), log_pi=torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log())
        findings = SimpleNamespace(text=SimpleNamespace(relevance=relevance))
        candidate = {"level": torch.tensor([2, 0])}  # 0: no grade
        inputs = Inputs({}, candidate, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        loss = Anchor()(Predictions({}, {}, own=findings), inputs, labels={})["anchor"]
        assert torch.allclose(loss.exp(), torch.tensor(4 / 3))
    """

    def __init__(self, level_grades: Sequence[float] | None = None) -> None:
        super().__init__()
        self.level_grades: Tensor | None
        self.register_buffer("level_grades", None if level_grades is None else torch.tensor(level_grades), persistent=False)

    @classmethod
    def build(cls, level_grades: list[float], **settings: Any) -> Anchor:
        """As of `Loss`; `target`: a grade is its `level`, or the `grade`."""
        return cls(level_grades if settings["target"] == "grade" else None)

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`anchor`."""
        log_pi = predictions.own.text.relevance.log_pi
        if self.level_grades is None:
            target = level_targets(inputs.candidate["level"], log_pi.shape[1])
        else:
            target = grade_distributions(inputs.candidate["relevance"], self.level_grades).nan_to_num()
        return {"anchor": anchor_loss(log_pi, target)}


def anchor_loss(log_pi: Tensor, target: Tensor) -> Tensor:
    r"""Cross-entropy of the level distribution on what is known of the level, so that levels keep their meaning.

    With the distribution :math:`\pi` of a candidate and its target :math:`t`, :math:`-\sum_k t_k \log \pi_k`, mean over the
    candidates with a target. Re-derived here: clicks alone leave the levels of a mixture unidentified.

    Args:
        log_pi: (C, K) float, log probabilities of the levels.
        target: (C, K) float, a distribution over the levels, or zeros: the candidate has no part in it.

    Returns:
        A float scalar.

    Example::

        log_pi = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
        loss = anchor_loss(log_pi, level_targets(torch.tensor([2, 0]), levels=2))
        assert torch.allclose(loss.exp(), torch.tensor(4 / 3))
    """
    return weighted_mean(-(target * log_pi).sum(1), (target > 0).any(1).to(log_pi.dtype))


def level_targets(level: Tensor, levels: int) -> Tensor:
    """The targets of known levels.

    Args:
        level: (C,) int64 in 1..K, 0: missing.
        levels: K.

    Returns:
        (C, K) float32, 1 at the level; zeros where it is missing.

    Example::

        assert level_targets(torch.tensor([2, 0]), levels=3).tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return F.one_hot(level, levels + 1)[:, 1:].float()
