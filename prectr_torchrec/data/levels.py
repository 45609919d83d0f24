"""From raw relevance grades to levels, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def grade_levels(grades: NDArray[np.float32], boundaries: list[float]) -> NDArray[np.int8]:
    """Levels in 0..K, same shape: k where `boundaries[k - 2] < grade <= boundaries[k - 1]`, 0 where the grade is NaN."""
    levels = (grades == grades).astype(np.int8)
    for boundary in boundaries:
        levels += grades > np.float32(boundary)
    return levels


def grade_distributions(grades: NDArray[np.float32], level_grades: NDArray[np.float64]) -> NDArray[np.float32]:
    """(N, K) distributions over the two levels that a grade lies between, with the grade as their expected grade.

    Args:
        grades: (N,) without NaN; beyond the first or last level's grade it is that level.
        level_grades: (K,) ascending, the grade that stands for each level.
    """
    place = np.interp(grades, level_grades, np.arange(len(level_grades)))  # 1.25: a quarter of the way from level 2 to level 3
    return np.maximum(1 - np.abs(place[:, None] - np.arange(len(level_grades))), 0).astype(np.float32)
