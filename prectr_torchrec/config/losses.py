"""The terms of the loss: what each can be told, its weight, and which class it is built of.

A loss is a section here, a field of `LossesConfig`, and a class in `modules/losses/`: the section's fields but the weight are the
keyword arguments of the class's `build`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from prectr_torchrec.config.base import LocalPath, Section


class LossSection(Section):
    """What all losses have in common."""

    built_of: ClassVar[str] = ""
    """`module:class` below `modules/losses/`; nothing where training brings the loss with data of its own."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """What a ranker must find for it, of `RankerSection.finds`."""
    weight: float | None = Field(None, ge=0)
    """null: what the kind of ranker says."""


class ClickLoss(LossSection):
    """Binary cross-entropy of the click at the logged position."""

    built_of: ClassVar[str] = "click:CrossEntropy"


class AnchorLoss(LossSection):
    """Cross-entropy of the level distribution on the grade."""

    built_of: ClassVar[str] = "anchor:Anchor"
    reads: ClassVar[frozenset[str]] = frozenset({"levels"})
    target: Literal["level", "grade"] = "level"
    """Of the grade: its `level`, or the distribution over the two levels that the `grade` lies between, by
    `data.levels.level_grades`. `distill` does the latter, by the means of the grades that it learns from."""


class ConsistencyLoss(LossSection):
    """The hinge that keeps the levels' click probabilities in order."""

    built_of: ClassVar[str] = "consistency:Consistency"
    reads: ClassVar[frozenset[str]] = frozenset({"level_clicks"})
    margin: float = 0.0
    """In probability."""


class DebiasLoss(LossSection):
    """Exposure-bias correction: relevant rows against lowered copies of themselves."""

    built_of: ClassVar[str] = "debias:Debias"
    reads: ClassVar[frozenset[str]] = frozenset({"level_clicks"})
    negatives: Literal["noise", "swap"] = "swap"
    """The title of another request (`swap`), or `noise` on the text side."""
    noise: float = Field(1.0, gt=0)
    """Standard deviation of the noise, in that of the text features over the batch."""
    minimum_level: int = Field(3, ge=2)
    """Rows of this level and above have lowered copies."""
    margin: float = 0.5
    """Per level of distance, in logits."""
    clip: float = Field(3.0, gt=0)
    """Upper bound of a row's hinge."""
    quantile: float = Field(0.1, ge=0, lt=1)
    """Rows that themselves score below this quantile of the batch are left out."""


class LoadBalanceLoss(LossSection):
    """Squared coefficient of variation of the incentive experts' mean loads."""

    built_of: ClassVar[str] = "balance:LoadBalance"
    reads: ClassVar[frozenset[str]] = frozenset({"incentive"})


class RandomNegativesLoss(LossSection):
    """The anchor on titles swapped within the batch, taken as level 1."""

    built_of: ClassVar[str] = "negatives:RandomNegatives"
    reads: ClassVar[frozenset[str]] = frozenset({"levels"})


class RehearsalLoss(LossSection):
    """A teacher's soft grades to learn from in each step beside the log (rehearsal, Robins 1995), so that the text side does
    not forget what `distill` taught it."""

    reads: ClassVar[frozenset[str]] = frozenset({"levels"})
    pairs: LocalPath | None = None
    """File of `prectr pairs`, of which the train queries' pairs are drawn; null: no rehearsal."""
    scores: list[LocalPath] = []
    """Folders of `prectr teach` on these pairs; the mean of several."""
    weight: float = Field(1.0, gt=0)
    batch_size: int = Field(256, ge=1)
    """Pairs of a step of every rank."""
    temperature: float = Field(2.0, gt=0)
    """T of the teacher's and the tower's distribution."""

    @model_validator(mode="after")
    def _pairs_have_scores(self) -> RehearsalLoss:
        if (self.pairs is None) != (not self.scores):
            raise ValueError("pairs and scores belong together: a file of `prectr pairs`, and folders of `prectr teach` on it")
        return self


class ListwiseLoss(LossSection):
    """Softmax cross-entropy over the candidates of a request; beside the click's, which keeps probabilities true."""

    built_of: ClassVar[str] = "listwise:Listwise"


class JRCLoss(LossSection):
    """The generative half of joint ranking and calibration (JRC), beside the click's cross-entropy."""

    built_of: ClassVar[str] = "jrc:JointRankingCalibration"


class PriorLoss(LossSection):
    """How far rows of mixed effects are from their priors."""

    built_of: ClassVar[str] = "prior:Prior"
    reads: ClassVar[frozenset[str]] = frozenset({"prior"})


class LossesConfig(Section):
    """By name, in the order in which they are added up."""

    click: ClickLoss = ClickLoss()
    anchor: AnchorLoss = AnchorLoss()
    consistency: ConsistencyLoss = ConsistencyLoss()
    debias: DebiasLoss = DebiasLoss()
    load_balance: LoadBalanceLoss = LoadBalanceLoss()
    random_negatives: RandomNegativesLoss = RandomNegativesLoss()
    listwise: ListwiseLoss = ListwiseLoss()
    jrc: JRCLoss = JRCLoss()
    prior: PriorLoss = PriorLoss()
    rehearsal: RehearsalLoss = RehearsalLoss()
    labels: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """Label of `data.labels` -> weight of its binary cross-entropy over all candidates of which it is known, at the logged
    position; 1 where none is set."""

    def __iter__(self) -> Iterator[tuple[str, LossSection]]:  # type: ignore[override]
        return ((name, getattr(self, name)) for name in type(self).model_fields if name != "labels")
