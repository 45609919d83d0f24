"""Prices of a simulated log: what items cost, and how much each user minds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prectr_torchrec.data.simulate.catalogue import Floats
from prectr_torchrec.data.simulate.planted import Planted, Rows

MEDIAN, SPREAD = 30.0, 0.7
"""Of prices, and the deviation of their logarithm."""
MISSING = 0.1
"""Share of the items without a price in the catalogue; users see it all the same."""
MINDED, DIFFERENCE = 0.6, 0.6
"""Mean and deviation of what users mind, in logits by deviation of the log price."""


@dataclass(frozen=True)
class Prices(Planted):
    """Of I items and U users."""

    price: Floats
    """(I,), NaN where the catalogue has none."""
    dearness: Floats
    """(I,) deviations of the log price from its mean."""
    sensitivity: Floats
    """(U,) logits that a deviation of the log price costs; below 0: who looks for what is dear."""

    def effect(self, rows: Rows) -> Floats:
        return -self.sensitivity[rows.user][:, None] * self.dearness[rows.item]

    def item_columns(self) -> dict[str, Any]:
        return {"price": pa.array(self.price, from_pandas=True)}


def draw_prices(rng: np.random.Generator, items: int, users: int) -> Prices:
    """Draws prices and users who differ in what they mind."""
    dearness = rng.normal(size=items)
    price = np.round(MEDIAN * np.exp(SPREAD * dearness), 2)
    price[rng.random(items) < MISSING] = np.nan
    return Prices(price, dearness, rng.normal(MINDED, DIFFERENCE, users))
