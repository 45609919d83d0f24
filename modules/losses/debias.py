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


class Debias(Loss):
    r"""A relevant row ranks above its copy with a lowered text.

    :math:`\mathrm{mean}[w \cdot \mathrm{clip}(m d - (s(x) - s(\tilde x)), 0, M)]` and the anchor of the copy on the rebuilt
    level :math:`l - d`, with the score :math:`s` of a row :math:`x` of level :math:`l` and of its copy :math:`\tilde x`, lowered
    by :math:`d` levels. `w` leaves out rows that themselves score in the batch's lowest quantile, and passes no gradient. The
    papers name the parts; this form is re-derived here.

    Args:
        negatives: the copy has the title of another request (`swap`), or `noise` on the text side.
        noise: standard deviation of the noise a level, in that of the text features over the batch.
        minimum_level: rows of this level and above have lowered copies.
        margin: m, per level of distance, in logits.
        clip: M, upper bound of a row's hinge.
        quantile: rows that themselves score below this quantile of the batch are left out.
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
    """Levels that each row's lowered copy lies below it: drawn from 1..level - 1, or down to level 1 for swapped titles; (C,)
    float.

    Rows below `minimum_level`, those without a grade among them, have none: 0.
    """
    room = (level - 1).clamp(min=0).float()
    drawn = room if negatives == "swap" else (torch.rand_like(room) * room).floor() + 1
    return torch.where(level >= minimum_level, drawn, 0.0)
