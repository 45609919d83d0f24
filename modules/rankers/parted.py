"""What rankers have in common whose tower reads the features of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ..inputs import Inputs
from ..mixture import LabelProbability, label_chain
from ..parts.base import Attention, Given, Part, PartOutput, ReportedPart
from ..parts.position import Examination
from ..text.relevance import TextReading
from .base import Predictions, RankingModel


class PartedRanker(RankingModel):
    r"""A ranker whose click logits are :math:`\mathrm{Tower}([f_1(x); f_2(x); ...]) + \sum_m s_m(x)`.

    Here :math:`f_m(x)` are the features of the m-th part of a candidate :math:`x`, and :math:`s_m(x)` is its shift where it has
    one. What parts report, attend to and want rates of their own for is the ranker's too.

    Attributes:
        parts: by name, in the order in which the tower reads them.
        position: examination by position; None: the position has no part.

    Example::

        class Small(PartedRanker):
            def __init__(self, parts):
                super().__init__()
                self.parts, self.position = torch.nn.ModuleDict(parts), None
                self.tower = ClickTower(self.num_features, [4], 1)

            def forward(self, inputs):
                text = TextReading.of_nothing(inputs.candidate_weight)  # its parts read no text
                logits, outputs = self.logits(self.tower, inputs, text)
                ranking = {"click": LabelProbability.from_logit(logits["click"].squeeze(1))}
                return Predictions(ranking, self.at_positions(ranking, inputs), self.reports_of(outputs))

        widths = Widths(request={}, candidate={"item_id": 8}, sequences={})
        inputs = Inputs({}, {"item_id": torch.randn(3, 8)}, {}, {}, torch.ones(1), torch.tensor([0, 0, 0]), torch.ones(3))
        assert Small({"features": LookedUpFeatures(widths)})(inputs).ranking["click"].logit.shape == (3,)
    """

    parts: nn.ModuleDict
    position: Examination | None

    @staticmethod
    def build_parts(given: Given, settings: dict[str, Any]) -> tuple[dict[str, Part], Examination | None]:
        """The parts and the examination; takes `parts`, a builder each, `position_bias` and `position_count` off the settings."""
        builders: Mapping[str, Callable[[Given], Part | None]] = settings.pop("parts")
        position_bias, position_count = settings.pop("position_bias"), settings.pop("position_count")
        parts = {name: part for name, build in builders.items() if (part := build(given)) is not None}
        return parts, Examination(position_count) if position_bias else None

    @property
    def num_features(self) -> int:
        """Width of what the tower reads."""
        return sum(part.num_features for part in self._all_parts())

    @property
    def encoded_texts(self) -> list[str]:
        """Further texts of the items that parts want encoded."""
        return list(dict.fromkeys(name for part in self._all_parts() for name in part.encodes))

    def parts_reported(self) -> dict[str, ReportedPart]:
        """What the parts report, by name."""
        return {name: what for part in self._all_parts() for name, what in part.reported.items()}

    def start_from(self, examination: Sequence[float], candidates: int = 1) -> None:
        """As of `RankingModel`."""
        if self.position is not None:
            self.position.start_from(examination)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """As of `RankingModel`."""
        return {name: group for part in self._all_parts() for name, group in part.groups().items()}

    def attention(self, inputs: Inputs) -> dict[str, Attention]:
        """As of `RankingModel`."""
        return {name: weights for part in self._all_parts() for name, weights in part.attention(inputs).items()}

    def logits(self, tower: nn.Module, inputs: Inputs, text: TextReading) -> tuple[dict[str, Tensor], dict[str, PartOutput]]:
        """By label the logits (C, n) of a tower with n of them, without position, and what the parts say. Shifts are of the
        click, which comes before all other labels."""
        outputs: dict[str, PartOutput] = {name: part(inputs, text) for name, part in self.parts.items()}
        logits: dict[str, Tensor] = tower(torch.cat([output.features for output in outputs.values()], dim=1))
        shifts = [output.shift for output in outputs.values() if output.shift is not None]
        if shifts:
            logits = {**logits, "click": logits["click"] + sum(shifts[1:], shifts[0])}
        return logits, outputs

    def at_positions(self, ranking: dict[str, LabelProbability], inputs: Inputs) -> dict[str, LabelProbability]:
        """By label, at the logged positions: all that happens needs the position to be looked at."""
        if self.position is None:
            return ranking
        return {label: self.position(p, inputs.candidate["position"]) for label, p in ranking.items()}

    def reports_of(self, outputs: Mapping[str, PartOutput]) -> dict[str, Tensor]:
        """What the parts report, where the ranker does."""
        if self.training or not self.reports_parts:
            return {}
        return {name: value for output in outputs.values() for name, value in output.report.items()}

    def _all_parts(self) -> Iterable[Part]:
        return cast(Iterable[Part], self.parts.values())


class TowerRanker(PartedRanker):
    """A `PartedRanker` without a text side: a tower with logits of the click and of further labels, and their chain.

    Args:
        parts: what the tower reads, by name, in order.
        position: examination by position; None: the position has no part.
        labels: those beside the click -> what comes before each.

    Attributes:
        tower: of a subclass: (C, `num_features`) -> by label, `click` first, (C, 1).

    Example::

        class Small(TowerRanker):
            def __init__(self, parts):
                super().__init__(parts)
                self.tower = ClickTower(self.num_features, [4], 1)

        widths = Widths(request={}, candidate={"item_id": 8}, sequences={})
        inputs = Inputs({}, {"item_id": torch.randn(3, 8)}, {}, {}, torch.ones(1), torch.tensor([0, 0, 0]), torch.ones(3))
        assert Small({"features": LookedUpFeatures(widths)})(inputs).ranking["click"].logit.shape == (3,)
    """

    tower: nn.Module

    def __init__(
        self, parts: Mapping[str, Part], *, position: Examination | None = None, labels: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.after = dict(labels or {})
        self.parts = nn.ModuleDict(dict(parts))
        self.position = position
        self.reported = self.parts_reported()

    @classmethod
    def build(cls, given: Given, **settings: Any) -> Self:
        """As of `RankingModel`: the arguments of the class, and those of `build_parts`."""
        parts, position = cls.build_parts(given, settings)
        return cls(parts, position=position, labels=given.labels, **settings)

    def forward(self, inputs: Inputs) -> Predictions:
        """Scores every candidate."""
        logits, outputs = self.logits(self.tower, inputs, TextReading.of_nothing(inputs.candidate_weight))
        ranking = label_chain({label: z.squeeze(1) for label, z in logits.items()}, self.after)
        return Predictions(ranking, self.at_positions(ranking, inputs), self.reports_of(outputs))
