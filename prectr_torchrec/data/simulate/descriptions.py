"""Descriptions of a simulated log's items: a second text, which names uses that no title tells of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prectr_torchrec.data.simulate.catalogue import NONE, NOUNS, Catalogue, Floats, Ints
from prectr_torchrec.data.simulate.planted import Planted, Rows

WORTH, SHARE, USES = 2.0, 0.8, 2
"""Logits of a use that is searched for, the share of the items that are described, and how many uses each then has."""


@dataclass(frozen=True)
class Descriptions(Planted):
    """Of R requests and I items."""

    text: list[str]
    """(I,), empty where there is none."""
    noun: Ints
    """(I,)"""
    uses: Ints
    """(I, USES) kinds of the noun that each names, NONE where there is no description."""
    wanted: Ints
    """(R, 2) the noun and the kind that each request names; kind NONE where it names none."""

    def effect(self, rows: Rows) -> Floats:
        noun, kind = self.wanted[rows.request].T[..., None]  # (R, 1) each
        named = (self.uses[rows.item] == kind[..., None]).any(axis=2) & (kind != NONE)
        return WORTH * (named & (self.noun[rows.item] == noun))

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
    uses = np.argsort(rng.random((len(noun), len(kinds[0]))), axis=1)[:, :USES]
    uses[rng.random(len(noun)) >= SHARE] = NONE
    text = [
        "" if NONE in of_item else f"Serves as {' or '.join(f'{kinds[n][k]} {nouns[n]}' for k in of_item)} too."
        for n, of_item in zip(noun.tolist(), uses.tolist(), strict=True)
    ]
    return Descriptions(text, noun, uses, catalogue.query_attributes[query, :2])
