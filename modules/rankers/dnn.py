"""DNN: an embedding and multilayer perceptron ranker, the base of those that add one thing to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..inputs import Inputs
from ..mixture import ClickProbability
from ..parts.base import Attention, Given, Part
from ..parts.position import Examination
from ..text.relevance import TextReading
from .base import Predictions, RankingModel
from .towers import ClickTower


class DNN(RankingModel):
    r"""The click probability from the features of parts, by a multilayer perceptron.

    The embedding and MLP paradigm, as arXiv 1706.06978 calls what it compares with. Let :math:`f_m(x)` be the features of the
    m-th part of a candidate :math:`x`, :math:`s_m(x)` its shift where it has one, and :math:`\epsilon_p` the examination of the
    position p that was logged. Then

    .. math:: z = \mathrm{Tower}([f_1(x); f_2(x); ...]) + \sum_m s_m(x), \quad P(y = 1 | x, p) = \epsilon_p \, \sigma(z),

    and what ranks is :math:`\sigma(z)`. There is no relevance tower: its parts read no `TextReading`.

    Args:
        parts: what the tower reads, by name, in order.
        tower: widths of its hidden layers.
        cross_layers: layers of a cross network before them.
        dropout: on the hidden layers.
        position: examination by position; None: the position has no part.

    Example::

        widths = Widths(request={"user_id": 8}, candidate={"item_id": 8}, sequences={})
        model = DNN({"features": LookedUpFeatures(widths)}, tower=[32, 16], position=Examination(10))
        inputs = Inputs(  # R = 2 requests with 2 candidates and 1
            request={"user_id": torch.randn(2, 8)},
            candidate={"item_id": torch.randn(3, 8), "position": torch.tensor([1, 2, 1])},
            sequences={},
            texts={},
            request_weight=torch.ones(2),
            candidate_request=torch.tensor([0, 0, 1]),
            candidate_weight=torch.ones(3),
        )
        assert model(inputs).ranking["click"].logit.shape == (3,)
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        *,
        tower: Sequence[int] = (256, 128),
        cross_layers: int = 0,
        dropout: float = 0.0,
        position: Examination | None = None,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(dict(parts))
        self.position = position
        in_dim = sum(part.num_features for part in parts.values())
        self.tower = ClickTower(in_dim, list(tower), 1, cross_layers=cross_layers, dropout=dropout)
        self.reported = {name: what for part in parts.values() for name, what in part.reported.items()}

    @classmethod
    def build(cls, given: Given, **settings: Any) -> Self:
        """As of `RankingModel`: the arguments of the class, and `parts`, a builder each, `position_bias` and `position_count`."""
        builders: Mapping[str, Callable[[Given], Part | None]] = settings.pop("parts")
        position_bias, position_count = settings.pop("position_bias"), settings.pop("position_count")
        parts = {name: part for name, build in builders.items() if (part := build(given)) is not None}
        return cls(parts, position=Examination(position_count) if position_bias else None, **settings)

    def start_from(self, examination: Sequence[float]) -> None:
        """As of `RankingModel`."""
        if self.position is not None:
            self.position.start_from(examination)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """As of `RankingModel`."""
        found: dict[str, list[nn.Parameter]] = {}
        for part in self._all_parts():
            found |= part.groups()
        return found

    def forward(self, inputs: Inputs) -> Predictions:
        """Scores every candidate."""
        text = TextReading.of_nothing(inputs.candidate_weight)
        outputs = [part(inputs, text) for part in self._all_parts()]
        z = self.tower(torch.cat([output.features for output in outputs], dim=1))  # (C, 1)
        z = sum((output.shift for output in outputs if output.shift is not None), z).squeeze(1)
        ranking = ClickProbability(F.logsigmoid(z), F.logsigmoid(-z))
        logged = self.position(ranking, inputs.candidate["position"]) if self.position is not None else ranking
        parts: dict[str, Tensor] = {}
        if self.reports_parts and not self.training:
            parts = {name: value for output in outputs for name, value in output.report.items()}
        return Predictions({"click": ranking}, {"click": logged}, parts)

    def attention(self, inputs: Inputs) -> dict[str, Attention]:
        """As of `RankingModel`."""
        found: dict[str, Attention] = {}
        for part in self._all_parts():
            found |= part.attention(inputs)
        return found

    def _all_parts(self) -> Iterable[Part]:
        return cast(Iterable[Part], self.parts.values())
