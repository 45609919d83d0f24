"""The engine's own score in a simulated log: of each candidate as it was then, and it knows what nothing else tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prectr_torchrec.data.simulate.catalogue import Floats, Ints
from prectr_torchrec.data.simulate.planted import Planted, Rows

WORTH, NOISE = 0.7, 0.5
"""Logits of a deviation of what the engine knows, and the noise of its score, in deviations."""


@dataclass(frozen=True)
class Engine(Planted):
    """Of R requests with C candidates each."""

    appeal: Floats
    """(R, C) such as what is in stock nearby, in deviations."""
    score: Floats
    """(R, C) with its noise."""

    def effect(self, rows: Rows) -> Floats:
        return np.asarray(WORTH * self.appeal[rows.request])

    def impression_columns(self, request: Ints, candidate: Ints) -> dict[str, Any]:
        return {"engine_score": self.score[request, candidate]}


def draw_engine(rng: np.random.Generator, grades: Floats) -> Engine:
    """Draws what the engine knows.

    Args:
        grades: (R, C) true relevance, which the score knows too.
    """
    appeal = rng.normal(size=grades.shape)
    return Engine(appeal, np.round(10 + 2 * (appeal + 0.5 * grades + rng.normal(0, NOISE, grades.shape)), 3))
