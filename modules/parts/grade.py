"""A grade that is known when scoring, as features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..inputs import Inputs
from ..text.relevance import TextReading
from .base import Given, Part, PartOutput

Missing = Literal["marked", "modelled"]
"""What stands for a grade that is missing."""


class KnownGrade(Part):
    r"""A vector of the level, the grade itself, and whether it is missing.

    Let :math:`e_0..e_K` be learned vectors, of no grade and of the levels :math:`k = 1..K`, :math:`g_k` the grade that stands for
    a level, and :math:`n(g) = (g - g_{min}) / (g_{max} - g_{min})` a grade's place in the range of grades. A known
    grade :math:`g` of level :math:`k` gives :math:`[e_k; n(g); 0]`. Predicted levels :math:`\pi` give
    :math:`[e_0 + \sum_k \pi_k e_k; \sum_k \pi_k n(g_k); 1]`: the vector of no grade marks a predicted one. Nothing known gives
    :math:`[e_0; 0; 1]`.

    With `missing="modelled"` the relevance tower's own levels take the place of predicted ones where nothing is known, without a
    gradient, and a last feature is 1 where no candidate of the request has a grade. A grade that is missing beside others says
    something of the candidate, such as that nobody thought it worth grading; where all are missing it says nothing.

    Args:
        level_grades: (K,) the grade that stands for each level.
        grade_range: lowest and highest grade.
        dim: width of the vector.
        missing: what stands for a missing grade: a mark (`marked`), or besides what the ranker has of its own (`modelled`).

    Example::

        part = KnownGrade([1.0, 2.0, 3.0], (1.0, 3.0))
        candidate = {  # a grade, and nothing known
            "relevance": torch.tensor([2.0, torch.nan]), "level": torch.tensor([2, 0]), "predicted": torch.zeros(2, 3)
        }
        inputs = Inputs({}, candidate, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        assert part(inputs, text).features[:, 8:].tolist() == [[0.5, 0.0], [0.0, 1.0]]
    """

    def __init__(
        self, level_grades: Sequence[float], grade_range: tuple[float, float], *, dim: int = 8, missing: Missing = "marked"
    ) -> None:
        super().__init__()
        self.grade_range, self.modelled = grade_range, missing == "modelled"
        self.num_features = dim + 2 + self.modelled
        self.level_grades: Tensor
        self.register_buffer("level_grades", torch.tensor(level_grades), persistent=False)
        self.level = nn.Embedding(len(level_grades) + 1, dim)

    @classmethod
    def build(cls, given: Given, **settings: Any) -> KnownGrade:
        """As of `Part`."""
        return cls(given.level_grades, given.grade_range, **settings)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, dim + 2), or (C, dim + 3) of what is modelled."""
        low, high = self.grade_range
        given, predicted = inputs.candidate["relevance"], inputs.candidate["predicted"]
        missing = given.isnan()
        if self.modelled and text.relevance.log_pi.shape[1]:  # a ranker without a relevance side has no levels
            predicted = torch.where(inputs.graded.unsqueeze(1), predicted, text.relevance.log_pi.detach().exp())
        grade = torch.where(missing, predicted @ (self.level_grades - low), given - low) / (high - low)
        level = self.level(inputs.candidate["level"]) + predicted @ self.level.weight[1:]
        features = [level, grade.unsqueeze(1), missing.float().unsqueeze(1)]
        if self.modelled:
            features.append((~inputs.of_graded_requests()).float().unsqueeze(1))
        return PartOutput(torch.cat(features, dim=1))
