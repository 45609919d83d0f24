"""From raw relevance grades to levels, and back; distributions over the levels in eight bytes.

Byte k - 1 of a packed distribution is the probability of level k in units of 2**-7; they add up to one, so sums of them are
exact. 0: there is none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_LEVELS = 8
"""Of a packed distribution."""
PACKED_UNITS = 2**7


def grade_levels(grades: NDArray[np.float32], boundaries: list[float]) -> NDArray[np.int8]:
    """Levels in 0..K, same shape: k where `boundaries[k - 2] < grade <= boundaries[k - 1]`, 0 where the grade is NaN."""
    levels = (grades == grades).astype(np.int8)
    for boundary in boundaries:
        levels += grades > np.float32(boundary)
    return levels


def unpack_levels(packed: NDArray[np.int64], levels: int) -> NDArray[np.float32]:
    """Probabilities (..., K) of packed predictions (...); zeros where there is none."""
    parts = np.ascontiguousarray(packed).astype("<i8", copy=False).view(np.uint8).reshape(*packed.shape, MAX_LEVELS)
    return parts[..., :levels].astype(np.float32) * np.float32(1 / PACKED_UNITS)


def pack_levels(probabilities: NDArray[Any]) -> NDArray[np.int64]:
    """Packed predictions (...) of distributions (..., K); zeros stay zero."""
    total = probabilities.sum(axis=-1, keepdims=True, dtype=np.float64)
    below = np.round(PACKED_UNITS * np.cumsum(probabilities, axis=-1, dtype=np.float64) / np.where(total > 0, total, 1)).astype(
        np.int64
    )
    units = np.diff(below, axis=-1, prepend=0)
    return np.asarray((units << (8 * np.arange(units.shape[-1]))).sum(axis=-1), dtype=np.int64)
