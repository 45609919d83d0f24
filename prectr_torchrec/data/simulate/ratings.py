"""Ratings of a simulated log: how good an item is, as far as others have said so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prectr_torchrec.data.simulate.catalogue import Floats
from prectr_torchrec.data.simulate.planted import Planted, Rows

MEAN, SPREAD = 3.9, 0.6
"""Stars, of at most 5."""
MISSING = 0.25
"""Share of the items that nobody has rated; they are as good as the others, on average."""
WORTH = 0.7
"""Logits of a deviation."""


@dataclass(frozen=True)
class Ratings(Planted):
    """Of I items."""

    goodness: Floats
    """(I,) in deviations."""
    rating: Floats
    """(I,) stars, NaN where nobody has rated."""

    def effect(self, rows: Rows) -> Floats:
        return np.asarray(WORTH * self.goodness[rows.item])

    def item_columns(self) -> dict[str, Any]:
        return {"rating": pa.array(self.rating, from_pandas=True)}


def draw_ratings(rng: np.random.Generator, items: int) -> Ratings:
    """Draws how good items are, and who has a rating."""
    goodness = rng.normal(size=items)
    rating = np.clip(np.round(MEAN + SPREAD * goodness, 1), 1, 5)
    rating[rng.random(items) < MISSING] = np.nan
    return Ratings(goodness, rating)
