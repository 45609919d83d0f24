"""Counters as dense features: what was shown and clicked before, per relevance level."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LevelStatistics(nn.Module):
    r"""Turns shown/clicked counters into features that neither explode nor trust few events.

    Per level :math:`k`, of :math:`s_k` shown, :math:`e_k` examined and :math:`c_k` clicked: :math:`\log(1 + s_k)` and the
    residual :math:`(c_k - p_k e_k) / (e_k + m)` of the clicks over a learned base rate :math:`p_k`, plus both over all
    levels. Zero counters give zero.

    Args:
        num_counters: counters side by side (K + 1 with the ungraded one; 1 for an item).
        smoothing: m, in impressions.
        base_rate: where p starts.
    """

    offsets = ("base_logit",)

    def __init__(self, num_counters: int, *, smoothing: float = 5.0, base_rate: float = 0.2) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.num_features = 2 * num_counters + 2
        self.base_logit = nn.Parameter(torch.full((num_counters,), base_rate).logit())

    def forward(self, shown: Tensor, clicked: Tensor, examined: Tensor) -> Tensor:
        """Args: shown, clicked, examined: (N, num_counters) float, the last is shown weighted by the examination of each
        position, or shown itself. Returns: (N, 2 num_counters + 2).
        """
        surplus = clicked - self.base_logit.sigmoid() * examined
        shown, examined, surplus = (torch.cat([x, x.sum(1, keepdim=True)], dim=1) for x in (shown, examined, surplus))
        return torch.cat([shown.log1p() / 4, 3 * surplus / (examined + self.smoothing)], dim=1)
