"""Carts and orders of a simulated log: which follow a click, and when.

    P(cart | click) = sigmoid(a_labels (0.8 (relevance - r0) + appeal_i - 0.6 dearness_i) - 1.2)
    P(order | cart) = sigmoid(a_labels (0.4 (relevance - r0) + worth_i - 0.6 dearness_i) - 0.4)

Appeal and worth are the items' own and independent of what is clicked; dearness is 0 where items have no prices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.data.simulate.catalogue import Floats, Ints

Flags = NDArray[np.bool_]
CART, ORDER = (-1.2, 0.8), (-0.4, 0.4)
"""Bias, and slope of relevance."""
MINDED = 0.6
CLICK_DELAY, CART_DELAY, ORDER_DELAY = (30, 1.0), (300, 1.0), (5400, 1.2)
"""Median seconds after what it follows, and the deviation of their logarithm."""


@dataclass(frozen=True)
class Purchases:
    """What carts and orders depend on, of I items."""

    strength: float
    """The multiplier."""
    appeal: Floats
    """(I,)"""
    worth: Floats
    """(I,)"""
    dearness: Floats
    """(I,)"""

    def chances(self, item: Ints, relevance: Floats) -> tuple[Floats, Floats]:
        """Of items, all (...) and by their distance from the mean relevance: P(cart | click) and P(order | cart)."""
        of_item = ((CART, self.appeal), (ORDER, self.worth))
        cart, order = (
            1 / (1 + np.exp(-bias - self.strength * (slope * relevance + own[item] - MINDED * self.dearness[item])))
            for (bias, slope), own in of_item
        )
        return cart, order


def draw_purchases(rng: np.random.Generator, strength: float, items: int, dearness: Floats | None) -> Purchases:
    """Draws the items' appeal and worth."""
    appeal, worth = rng.normal(0, 0.9, (2, items))
    return Purchases(strength, appeal, worth, np.zeros(items) if dearness is None else dearness)


def draw_labels(
    rng: np.random.Generator, timestamp: Ints, click: Flags, chance_of_cart: Floats, chance_of_order: Floats
) -> dict[str, Any]:
    """Columns `click_time`, `cart`, `cart_time`, `order` and `order_time` of n impressions; all arguments are (n,)."""
    cart = click & (rng.random(len(click)) < chance_of_cart)
    order = cart & (rng.random(len(click)) < chance_of_order)
    columns: dict[str, Any] = {}
    time = timestamp
    for name, happened, (median, spread) in (
        ("click", click, CLICK_DELAY),
        ("cart", cart, CART_DELAY),
        ("order", order, ORDER_DELAY),
    ):
        time = time + np.ceil(median * np.exp(spread * rng.normal(size=len(click)))).astype(np.int64)
        columns |= {name: happened.astype(np.int64)} if name != "click" else {}
        columns[f"{name}_time"] = pa.array(time, mask=~happened)
    return columns
