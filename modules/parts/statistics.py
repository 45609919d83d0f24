"""Counters as dense features: what was shown and clicked before, per relevance level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs import Inputs
from ..text.relevance import TextReading
from .base import Given, Part, PartOutput


class LevelStatistics(nn.Module):
    r"""Turns shown/clicked counters into features that neither explode nor trust few events.

    Let :math:`s_k` impressions of counter :math:`k` (a relevance level, or the ungraded) have been shown, :math:`e_k` of them
    examined and :math:`c_k` clicked, :math:`p_k` be a learned base rate and :math:`m` a smoothing, in impressions.
    The features are the volume and the smoothed residual of the clicks,

    .. math:: \tfrac14 \log(1 + s_k), \quad 3 \, \frac{c_k - p_k e_k}{e_k + m},

    and both of the sums over all k, :math:`c - p \cdot e` among them. The constants bring them to the order of 1; zero counters
    give zero. Re-derived here.

    Args:
        num_counters: counters side by side (K + 1 with the ungraded one; 1 for an item).
        smoothing: m, in impressions.
        base_rate: where each p starts.

    Attributes:
        num_features: 2 num_counters + 2.

    Example::

        statistics = LevelStatistics(5)  # K = 4 and the ungraded
        shown = torch.tensor([[3.0, 0.0, 2.0, 9.0, 4.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
        clicked = torch.tensor([[0.0, 0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
        features = statistics(shown, clicked, examined=shown)
        assert features.shape == (2, statistics.num_features)
        assert features[1].eq(0).all()
    """

    offsets = ("base_logit",)

    def __init__(self, num_counters: int, *, smoothing: float = 5.0, base_rate: float = 0.2) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.num_features = 2 * num_counters + 2
        self.base_logit = nn.Parameter(torch.full((num_counters,), base_rate).logit())

    def forward(self, shown: Tensor, clicked: Tensor, examined: Tensor) -> Tensor:
        """The features of counters.

        Args:
            shown: (N, num_counters) float.
            clicked: (N, num_counters) float.
            examined: (N, num_counters) float, shown weighted by the examination of each position, or shown itself.

        Returns:
            (N, 2 num_counters + 2) float: volumes, then residuals, that of the sums last of either.
        """
        surplus = clicked - self.base_logit.sigmoid() * examined
        shown, examined, surplus = (torch.cat([x, x.sum(1, keepdim=True)], dim=1) for x in (shown, examined, surplus))
        return torch.cat([shown.log1p() / 4, 3 * surplus / (examined + self.smoothing)], dim=1)


class Counters(Part):
    """Counters as a part of a ranker: `LevelStatistics` of each.

    Args:
        whose: of `user`, `query`, `group`, `item`.
        num_levels: K; the item's counters are over all levels.
        position_corrected: these expect clicks of what was examined, not of all that was shown.

    Example::

        part = Counters(["user", "item"], num_levels=4)
        inputs = Inputs(
            request={"user_shown": torch.rand(1, 5), "user_clicked": torch.rand(1, 5)},
            candidate={"shown": torch.rand(2, 1), "clicked": torch.rand(2, 1)},
            sequences={},
            texts={},
            request_weight=torch.ones(1),
            candidate_request=torch.tensor([0, 0]),
            candidate_weight=torch.ones(2),
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        assert part(inputs, text).features.shape == (2, part.num_features) == (2, 12 + 4)
    """

    def __init__(self, whose: Sequence[str], num_levels: int, *, position_corrected: bool = False) -> None:
        super().__init__()
        self.position_corrected = position_corrected
        modules = {who: LevelStatistics(1 if who == "item" else num_levels + 1) for who in whose}
        self.of = nn.ModuleDict(modules)
        self.num_features = sum(statistics.num_features for statistics in modules.values())

    @classmethod
    def build(cls, given: Given, **settings: Any) -> Counters:
        """As of `Part`."""
        return cls(num_levels=given.num_levels, position_corrected=given.position_corrected, **settings)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features of each of them side by side."""
        found = []
        for who, module in self.of.items():
            shown, clicked, examined = inputs.counters(who)
            features = module(shown, clicked, examined if self.position_corrected else shown)
            found.append(features if who == "item" else features[inputs.candidate_request])
        return PartOutput(torch.cat(found, dim=1))
