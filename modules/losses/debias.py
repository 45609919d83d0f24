"""Exposure-bias correction: relevant rows against lowered copies of themselves."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..inputs import Inputs
from ..rankers.base import Predictions
from .anchor import anchor_loss, level_targets
from .base import Label, Loss, weighted_mean

NegativeKind = Literal["noise", "swap"]
"""Gaussian noise on the text side, or the title of another request."""


class Debias(Loss):
    r"""A relevant row ranks above its copy with a lowered text.

    Let :math:`s(x)` be the ranking logit of a row :math:`x` of level :math:`l`, and :math:`s(\tilde x)` that of its copy, which
    is lowered by :math:`d` levels. With a margin :math:`m` and an upper bound :math:`M` the terms are

    .. math:: \mathrm{mean}[w \cdot \mathrm{clip}(m d - (s(x) - s(\tilde x)), 0, M)]

    and the anchor of the copy on the rebuilt level :math:`l - d`. The weight :math:`w` leaves out rows that themselves score in
    the batch's lowest quantile, and passes no gradient. PRECTR-V2 (arXiv 2602.20676) names the parts; this form is re-derived
    here. Of a model's findings it reads `swapped()` or `noised()`.

    Args:
        negatives: the copy has the title of another request (`swap`), or `noise` on the text side.
        noise: standard deviation of the noise a level, in that of the text features over the batch.
        minimum_level: rows of this level and above have lowered copies.
        margin: m, per level of distance, in logits.
        clip: M, upper bound of a row's hinge.
        quantile: rows that themselves score below this quantile of the batch are left out.

    Example::

        from types import SimpleNamespace

        log_p = torch.tensor([0.5, 0.5]).log()
        click = {"click": LabelProbability(log_p, log_p)}  # logit 0
        lowered = OtherTexts(torch.full((2, 4), 0.25).log(), torch.tensor([True, True]), logit=torch.tensor([-9.0, -1.0]))
        findings = SimpleNamespace(swapped=lambda: lowered)
        candidate = {"level": torch.tensor([4, 4])}
        inputs = Inputs({}, candidate, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        labels = {"click": Label(torch.zeros(2), torch.ones(2))}
        terms = Debias("swap", margin=0.5)(Predictions(click, click, own=findings), inputs, labels)
        assert terms["debias"].item() == 0.25  # the first copy is 9 below, the second 1 where it should be 3 * 0.5
    """

    def __init__(
        self,
        negatives: NegativeKind = "swap",
        *,
        noise: float = 1.0,
        minimum_level: int = 3,
        margin: float = 0.5,
        clip: float = 3.0,
        quantile: float = 0.1,
    ) -> None:
        super().__init__()
        self.negatives, self.noise, self.minimum_level = negatives, noise, minimum_level
        self.margin, self.clip, self.quantile = margin, clip, quantile

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`debias` and `lowered_anchor`, in training."""
        if not self.training:
            return {}
        level = inputs.candidate["level"]
        distance = lowered_distance(level, self.negatives, self.minimum_level)
        own = predictions.own
        other = own.swapped() if self.negatives == "swap" else own.noised(distance * self.noise)
        rows = (distance > 0) & other.foreign & (labels["click"].weight > 0)
        score = predictions.ranking["click"].logit
        enough = score.detach() >= score.detach().masked_fill(~rows, torch.nan).nanquantile(self.quantile)  # NaN without any
        hinge = (self.margin * distance - (score - other.logit)).clamp(0.0, self.clip)
        rebuilt = level_targets((level - distance.long()).clamp(min=1) * rows, other.log_pi.shape[1])
        return {
            "debias": weighted_mean(hinge, (rows & enough).float()),
            "lowered_anchor": anchor_loss(other.log_pi, rebuilt),
        }


def lowered_distance(level: Tensor, negatives: NegativeKind, minimum_level: int) -> Tensor:
    """Levels that each row's lowered copy lies below it: drawn from 1..level - 1, or down to level 1 for swapped titles.

    Args:
        level: (C,) int64 in 1..K, 0: no grade.
        negatives: what the copy has.
        minimum_level: rows below it, those without a grade among them, have no copy.

    Returns:
        (C,) float, 0 for rows without a copy.

    Example::

        assert lowered_distance(torch.tensor([0, 2, 3, 4]), "swap", 3).tolist() == [0.0, 0.0, 2.0, 3.0]
    """
    room = (level - 1).clamp(min=0).float()
    drawn = room if negatives == "swap" else (torch.rand_like(room) * room).floor() + 1
    return torch.where(level >= minimum_level, drawn, 0.0)
