"""Requests of a simulated log differ by device and hour: in how readily users click, and in what they then look for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prectr_torchrec.data.simulate.catalogue import Floats, Ints
from prectr_torchrec.data.simulate.planted import Planted, Rows

DEVICES = ("phone", "desktop", "tablet")
SHARES = (0.6, 0.3, 0.1)
READINESS = (-0.4, 0.6, 0.0)
"""Logits of a device."""
EVENING = 0.5
"""Logits by which the evening is above the mean, and the morning below it."""
INTEREST = 0.7
"""Deviation of a device's interest in a category, in logits."""


@dataclass(frozen=True)
class Contexts(Planted):
    """Of R requests and I items."""

    device: Ints
    """(R,)"""
    hour: Ints
    """(R,) 0..23"""
    interest: Floats
    """(devices, categories) logits."""
    category: Ints
    """(I,)"""

    def effect(self, rows: Rows) -> Floats:
        device, hour = self.device[rows.request], self.hour[rows.request]
        readiness = np.array(READINESS)[device] - EVENING * np.sin(2 * np.pi * hour / 24)
        return np.asarray(readiness[:, None] + self.interest[device[:, None], self.category[rows.item]])

    def impression_columns(self, request: Ints, candidate: Ints) -> dict[str, Any]:
        return {"device": [DEVICES[device] for device in self.device[request]], "hour": self.hour[request]}


def draw_contexts(rng: np.random.Generator, timestamp: Ints, category: Ints) -> Contexts:
    """Draws devices; hours are those of the requests' times.

    Args:
        timestamp: (R,) seconds.
        category: (I,) from 0.
    """
    device = rng.choice(len(DEVICES), size=len(timestamp), p=SHARES)
    interest = rng.normal(0, INTEREST, (len(DEVICES), category.max() + 1))
    return Contexts(device, timestamp // 3600 % 24, interest, category)
