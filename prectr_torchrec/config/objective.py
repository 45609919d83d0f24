"""The configuration of the loss: its terms and their weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from prectr_torchrec.config.base import LocalPath, Section


class DebiasConfig(Section):
    """Exposure-bias correction: relevant rows against lowered copies of themselves."""

    weight: float = Field(0.0, ge=0)
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


class RehearsalConfig(Section):
    """A teacher's soft grades to learn from in each step beside the log (rehearsal, Robins 1995), so that the text side does
    not forget what `distill` taught it."""

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
    def _pairs_have_scores(self) -> RehearsalConfig:
        if (self.pairs is None) != (not self.scores):
            raise ValueError("pairs and scores belong together: a file of `prectr pairs`, and folders of `prectr teach` on it")
        return self


class ObjectiveConfig(Section):
    anchor: float = Field(0.3, ge=0)
    """Weight of the cross-entropy of the level distribution on the grade."""
    anchor_on: Literal["level", "grade"] = "level"
    """Of the grade: its `level`, or the distribution over the two levels that the `grade` lies between, by
    `data.levels.level_grades`. `distill` does the latter, by the means of the grades that it learns from."""
    hidden_grades: float = Field(0.0, ge=0, lt=1)
    """Share of the training candidates, drawn anew in each step, whose grade the ranker does not see, so that it learns what to
    do without one; the anchor sees it."""
    consistency: float = Field(0.3, ge=0)
    """Weight of the hinge that keeps the levels' click probabilities in order."""
    consistency_margin: float = 0.0
    random_negatives: float = Field(0.0, ge=0)
    """Weight of the anchor on titles swapped within the batch, taken as level 1."""
    swap_share: float = Field(1.0, gt=0, le=1)
    """Share of the rows, drawn anew in each step, whose title is swapped, for this and for the debias. An interaction that
    reads texts together reads these pairs besides those of the log."""
    debias: DebiasConfig = DebiasConfig()
    rehearsal: RehearsalConfig = RehearsalConfig()
    load_balance: float = Field(0.01, ge=0)
    """Weight of the squared coefficient of variation of the incentive experts' mean loads."""
