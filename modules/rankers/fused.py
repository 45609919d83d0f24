"""Several rankers as one: a weighted sum of their click logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..inputs import Inputs
from ..mixture import LabelProbability
from ..parts.base import Attention, Given, ReportedPart
from ..parts.position import Examination
from ..text.relevance import TextRelevance
from .base import Predictions, RankingModel, WordTaste


@dataclass
class FusedFindings:
    """What `Fused` finds on its way to a score."""

    members: Mapping[str, Predictions]
    """By name."""


class Fused(RankingModel):
    r"""Rankers that were trained apart, each on its own features, and put together afterwards (stacking, Wolpert 1992).

    With the click logits :math:`z_m` of the members with the position held at its reference, weights :math:`w_m`, a bias
    :math:`b`, and the examination :math:`\epsilon_p` of the position p that was logged,

    .. math:: z = b + \sum_m w_m z_m, \quad P(y = 1 | x, p) = \epsilon_p \, \sigma(z).

    Weights and bias are to be fitted on requests that no member learned from. What members report is reported; of several that
    report the same, the first one's word stands.

    Args:
        members: by name.
        position: examination by position; None: the position has no part.

    Raises:
        ValueError: there is none, or more than one has a text encoder.

    Example::

        widths = Widths(request={}, candidate={"item_id": 8}, sequences={})
        members = {name: DNN({"features": LookedUpFeatures(widths)}, tower=[4]) for name in ("one", "other")}
        model = Fused(members, position=Examination(3))
        candidate = {"item_id": torch.randn(2, 8), "position": torch.tensor([1, 2])}
        inputs = Inputs({}, candidate, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        found = model(inputs)
        mean = sum(p.ranking["click"].logit for p in found.own.members.values()) / 2
        assert torch.allclose(found.ranking["click"].logit, mean)  # equal weights until they are fitted
    """

    offsets = ("bias",)

    def __init__(self, members: Mapping[str, RankingModel], *, position: Examination | None = None) -> None:
        super().__init__()
        if not members:
            raise ValueError("members: name one at least")
        sides = [side for member in members.values() if (side := member.text_side()) is not None]
        if sum(side.interaction is not None for side in sides) > 1:
            raise ValueError("members: one of them at most may have a text encoder")
        self._side = next((name for name, m in members.items() if (t := m.text_side()) is not None and t.interaction), None)
        self._side = self._side or next((name for name, member in members.items() if member.text_side() is not None), None)
        self.members = nn.ModuleDict(dict(members))
        self.position = position
        self.weights = nn.Parameter(torch.full((len(members),), 1 / len(members)))
        self.bias = nn.Parameter(torch.zeros(()))
        self.reported = {name: part for member in reversed(list(members.values())) for name, part in member.reported.items()}
        self.reported |= {
            f"{name}_logit": ReportedPart(f"the click logit of the member {name}, before its weight", signed=True)
            for name in members
        }

    @classmethod
    def build(cls, given: Given, **settings: Any) -> Fused:
        """As of `RankingModel`: `members`, and `position_bias` and `position_count`."""
        position = Examination(settings["position_count"]) if settings["position_bias"] else None
        return cls(settings["members"], position=position)

    def start_from(self, examination: Sequence[float], candidates: int = 1) -> None:
        """As of `RankingModel`; members start from it too."""
        for ranker in (*self._rankers().values(), self.position):
            if ranker is not None:
                ranker.start_from(examination)

    def text_side(self) -> TextRelevance | None:
        """As of `RankingModel`: that of the member with an encoder, else of the first that reads texts."""
        return None if self._side is None else self._rankers()[self._side].text_side()

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """As of `RankingModel`."""
        found: dict[str, list[nn.Parameter]] = {}
        for member in self._rankers().values():
            for name, group in member.groups().items():
                found[name] = [*found.get(name, []), *group]
        return found

    def attention(self, inputs: Inputs) -> dict[str, Attention]:
        """As of `RankingModel`."""
        found: dict[str, Attention] = {}
        for member in reversed(list(self._rankers().values())):
            found |= member.attention(inputs)
        return found

    def word_taste(self, inputs: Inputs) -> WordTaste | None:
        """As of `RankingModel`: that of the first member that knows one, with the member's weight."""
        for weight, member in zip(self.weights, self._rankers().values(), strict=True):
            if (taste := member.word_taste(inputs)) is not None:
                return taste._replace(worth=weight * taste.worth)
        return None

    def forward(self, inputs: Inputs) -> Predictions:
        """Scores every candidate."""
        members: dict[str, Predictions] = {}
        for name, member in self._rankers().items():
            if self.reports_parts:
                member = copy(member)  # the same weights; threads that share the model keep their own switch
                member.reports_parts = True
            members[name] = member(inputs)
        logits = {name: found.ranking["click"].logit for name, found in members.items()}
        ranking = LabelProbability.from_logit(self.bias + self.weights @ torch.stack(list(logits.values())))
        logged = self.position(ranking, inputs.candidate["position"]) if self.position is not None else ranking
        parts: dict[str, Tensor] = {}
        for found in reversed(list(members.values())):
            parts |= found.parts
        if self.reports_parts and not self.training:
            parts |= {f"{name}_logit": logit for name, logit in logits.items()}
        return Predictions({"click": ranking}, {"click": logged}, parts, FusedFindings(members))

    def _rankers(self) -> dict[str, RankingModel]:
        return cast(dict[str, RankingModel], dict(self.members.items()))
