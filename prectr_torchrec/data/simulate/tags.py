"""Tags of a simulated log: several an item, or none; some are liked by all, and users differ in the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.data.simulate.catalogue import Floats
from prectr_torchrec.data.simulate.planted import Planted, Rows

TAGS = tuple(
    "new sale eco premium handmade imported outdoor kids gift limited classic compact refurbished bundle local vegan".split()
)
MOST, SHARE = 4, 0.45
"""Tags that an item may have, and the chance of each; one in ten has none."""
WORTH, LIKING = 0.6, 0.6
"""Deviation of what a tag is worth to all, and to each user besides, in logits."""


@dataclass(frozen=True)
class Tags(Planted):
    """Of I items, U users and T tags."""

    tagged: NDArray[np.bool_]
    """(I, T)."""
    worth: Floats
    """(T,) logits of a tag for all users."""
    liking: Floats
    """(U, T) logits that a tag adds for a user."""

    def effect(self, rows: Rows) -> Floats:
        """The mean of the item's tags, 0 without any."""
        worth = np.einsum("rct,rt->rc", self.tagged[rows.item], self.worth + self.liking[rows.user])
        return np.asarray(worth / np.maximum(self.tagged[rows.item].sum(2), 1))

    def item_columns(self) -> dict[str, Any]:
        return {"tags": pa.array([[TAGS[tag] for tag in np.flatnonzero(row)] for row in self.tagged])}


def draw_tags(rng: np.random.Generator, items: int, users: int) -> Tags:
    """Draws tags, and users who differ in what they like."""
    tagged = np.zeros((items, len(TAGS)), bool)
    for _ in range(MOST):
        there = rng.random(items) < SHARE
        tagged[there, rng.integers(0, len(TAGS), items)[there]] = True
    return Tags(tagged, rng.normal(0, WORTH, len(TAGS)), rng.normal(0, LIKING, (users, len(TAGS))))
