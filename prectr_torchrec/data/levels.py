"""From raw relevance grades to levels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def grade_levels(grades: NDArray[np.float32], boundaries: list[float]) -> NDArray[np.int8]:
    """Levels in 0..K, same shape: k where `boundaries[k - 2] < grade <= boundaries[k - 1]`, 0 where the grade is NaN."""
    levels = (grades == grades).astype(np.int8)
    for boundary in boundaries:
        levels += grades > np.float32(boundary)
    return levels
