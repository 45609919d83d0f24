"""A grade that is known when scoring, as features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs import Inputs
from ..text.relevance import TextReading
from .base import Given, Part, PartOutput


class KnownGrade(Part):
    r"""A vector of the level, the grade itself, and whether it is missing.

    Let :math:`e_0..e_K` be learned vectors, of no grade and of the levels :math:`k = 1..K`, :math:`g_k` the grade that stands for
    a level, and :math:`n(g) = (g - g_{min}) / (g_{max} - g_{min})` a grade's place in the range of grades. A known
    grade :math:`g` of level :math:`k` gives :math:`[e_k; n(g); 0]`. Predicted levels :math:`\pi` give
    :math:`[e_0 + \sum_k \pi_k e_k; \sum_k \pi_k n(g_k); 1]`: the vector of no grade marks a predicted one. Nothing known gives
    :math:`[e_0; 0; 1]`.

    Args:
        level_grades: (K,) the grade that stands for each level.
        grade_range: lowest and highest grade.
        dim: width of the vector.

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

    def __init__(self, level_grades: Sequence[float], grade_range: tuple[float, float], *, dim: int = 8) -> None:
        super().__init__()
        self.grade_range, self.num_features = grade_range, dim + 2
        self.level_grades: Tensor
        self.register_buffer("level_grades", torch.tensor(level_grades), persistent=False)
        self.level = nn.Embedding(len(level_grades) + 1, dim)

    @classmethod
    def build(cls, given: Given, **settings: Any) -> KnownGrade:
        """As of `Part`."""
        return cls(given.level_grades, given.grade_range, **settings)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, dim + 2)."""
        low, high = self.grade_range
        given, predicted = inputs.candidate["relevance"], inputs.candidate["predicted"]
        missing = given.isnan()
        grade = torch.where(missing, predicted @ (self.level_grades - low), given - low) / (high - low)
        level = self.level(inputs.candidate["level"]) + predicted @ self.level.weight[1:]
        return PartOutput(torch.cat([level, grade.unsqueeze(1), missing.float().unsqueeze(1)], dim=1))
