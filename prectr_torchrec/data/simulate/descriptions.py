"""Descriptions of a simulated log's items: a second text, which names a use that no title tells of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prectr_torchrec.data.simulate.catalogue import NONE, NOUNS, Catalogue, Floats, Ints
from prectr_torchrec.data.simulate.planted import Planted, Rows

WORTH, SHARE = 1.5, 0.8
"""Logits of a use that is searched for, and the share of the items that are described."""


@dataclass(frozen=True)
class Descriptions(Planted):
    """Of R requests and I items."""

    text: list[str]
    """(I,), empty where there is none."""
    use: Ints
    """(I, 2) the noun and the kind that each names; kind NONE where there is none."""
    wanted: Ints
    """(R, 2) the noun and the kind that each request names; kind NONE where it names none."""

    def effect(self, rows: Rows) -> Floats:
        wanted, use = self.wanted[rows.request][:, None], self.use[rows.item]
        return WORTH * ((wanted == use).all(axis=2) & (use[..., 1] != NONE))

    def item_columns(self) -> dict[str, Any]:
        return {"description": self.text}


def draw_descriptions(rng: np.random.Generator, catalogue: Catalogue, query: Ints) -> Descriptions:
    """Draws uses among the kinds of each item's noun.

    Args:
        rng: of this part.
        catalogue: whose titles and queries stay as they are.
        query: (R,) of the requests.
    """
    nouns, kinds = list(NOUNS), [text.split() for text in NOUNS.values()]
    noun = catalogue.item_attributes[:, 0]
    kind = np.where(rng.random(len(noun)) < SHARE, rng.integers(0, len(kinds[0]), len(noun)), NONE)
    of_items = zip(noun.tolist(), kind.tolist(), strict=True)
    text = ["" if k == NONE else f"Serves as {kinds[n][k]} {nouns[n]} too." for n, k in of_items]
    return Descriptions(text, np.stack([noun, kind], axis=1), catalogue.query_attributes[query, :2])
