"""Vectors of a simulated log, such as a model would give of the items' images: they carry what users like, and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prectr_torchrec.data.simulate.catalogue import Floats
from prectr_torchrec.data.simulate.planted import Planted, Rows

WIDTH, LOOKS = 16, 3
"""Of the vectors, and the directions in them that users care about."""
MISSING = 0.05
"""Share of the items without an image."""
APPEAL, LIKING, NOISE = 0.5, 0.5, 0.5
"""Deviations: of what a look is worth to all, to each user besides, and of the vectors' noise."""


@dataclass(frozen=True)
class Images(Planted):
    """Of I items and U users."""

    look: Floats
    """(I, LOOKS)"""
    liking: Floats
    """(U, LOOKS) logits of a look."""
    image: Floats
    """(I, WIDTH), NaN where there is none."""

    def effect(self, rows: Rows) -> Floats:
        return np.einsum("rd,rcd->rc", self.liking[rows.user], self.look[rows.item])

    def item_columns(self) -> dict[str, Any]:
        there = ~np.isnan(self.image[:, 0])
        return {"image": pa.array([list(row) if has else None for row, has in zip(self.image, there, strict=True)])}


def draw_images(rng: np.random.Generator, items: int, users: int) -> Images:
    """Draws looks, users who differ in what they like, and what vectors show of it."""
    look = rng.normal(size=(items, LOOKS))
    image = np.round(look @ rng.normal(size=(LOOKS, WIDTH)) + rng.normal(0, NOISE, (items, WIDTH)), 4)
    image[rng.random(items) < MISSING] = np.nan
    liking = rng.normal(0, APPEAL, LOOKS) + rng.normal(0, LIKING, (users, LOOKS))
    return Images(look, liking, image)
