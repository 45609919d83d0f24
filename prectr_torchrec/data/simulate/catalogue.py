"""A generated shop: items with titles, queries, and true relevance grades that follow from the words.

An item is a brand, a size, a colour, a material, a kind and a noun ("Belora 24 in Oak Dining Chair in White"); its noun is
its category. A query names a noun, mostly a kind, and up to two of the other attributes. The grade of a pair depends on what
matches, so a text model can learn it and carry it over to queries that it never saw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NOUNS = {
    "lamp": "desk floor wall garden ceiling",
    "chair": "dining office folding lounge rocking",
    "table": "coffee side picnic console drafting",
    "shelf": "corner floating garage spice ladder",
    "faucet": "kitchen bathroom bar laundry pedestal",
    "drill": "cordless impact masonry angle press",
    "saw": "circular hole jig coping table",
    "ladder": "step extension attic platform rope",
    "heater": "ceramic tower patio baseboard water",
    "fan": "tower ceiling window pedestal exhaust",
    "rug": "runner shag outdoor braided nursery",
    "mirror": "vanity wall shaving standing round",
    "door": "sliding barn screen patio closet",
    "lock": "padlock deadbolt keypad cam bicycle",
    "hose": "soaker drain garden vacuum shower",
    "pump": "sump well bilge transfer bicycle",
    "brush": "paint wire scrub grill bottle",
    "tile": "mosaic subway floor border carpet",
    "pot": "stock sauce planter pressure coffee",
    "grill": "charcoal gas pellet portable smokeless",
    "cabinet": "medicine filing corner kitchen utility",
    "blind": "roller roman vertical cellular shutter",
    "basket": "laundry picnic hanging storage bicycle",
    "bench": "garden storage work piano weight",
}
"""Category noun -> its kinds."""
COLOURS = "white black red blue green grey beige navy ivory copper teal amber".split()
MATERIALS = "oak steel bamboo brass marble plastic glass linen walnut rattan".split()
SIZES = [f"{number} in" for number in (6, 8, 12, 18, 24, 30, 36, 48)]
SYLLABLES = "ba be lo ra mi ve nu to ki sa do fe la ri zu mo ta ne gu pi".split()

NONE = -1
"""A query's attribute that it does not name; an item's brand where it has none."""
NUM_BRANDS = 40
CARDINALITIES = (len(NOUNS), 5, len(COLOURS), len(MATERIALS), len(SIZES), NUM_BRANDS)
POOL = 24
"""Candidate items of a query."""
MAX_QUERIES = 10_000


@dataclass(frozen=True)
class Catalogue:
    """I items and Q queries; attributes are indices into the vocabularies, grades stand for each query's pool of items."""

    item_attributes: Ints
    """(I, 6): noun, kind, colour, material, size, brand (NONE: no brand)."""
    titles: list[str]
    query_attributes: Ints
    """(Q, 6): the same, NONE where the query does not name it."""
    queries: list[str]
    """Distinct."""
    pool: Ints
    """(Q, POOL) items that the shop may show for a query."""
    grades: Floats
    """(Q, POOL) true relevance, 1 to 3 in thirds."""


def make_catalogue(rng: np.random.Generator, items: int, queries: int) -> Catalogue:
    """Draws a catalogue.

    Raises:
        ValueError: fewer items than a query's pool, or more queries than the vocabulary is good for.
    """
    if items < POOL:
        raise ValueError(f"items is {items}; a query's pool alone takes {POOL}")
    if queries > MAX_QUERIES:
        raise ValueError(f"queries is {queries}; the vocabulary is good for {MAX_QUERIES} distinct ones")
    brands = _names(rng, NUM_BRANDS)
    item_attributes = _draw_items(rng, items)
    query_attributes, texts = _draw_queries(rng, queries, brands)
    match = _match(query_attributes, item_attributes)
    # Gumbel keys: a sample without replacement in which a perfect match is e^6 times as likely as no match
    pool = np.argsort(-(6 * match + rng.gumbel(size=match.shape)), axis=1)[:, :POOL]
    judged = np.take_along_axis(match, pool, axis=1) + rng.normal(0, 0.1, pool.shape)
    grades = 1 + np.clip(np.rint(6 * judged), 0, 6) / 3
    return Catalogue(item_attributes, _titles(rng, item_attributes, brands), query_attributes, texts, pool, grades)


def _draw_items(rng: np.random.Generator, items: int) -> Ints:
    attributes = rng.integers(0, CARDINALITIES, (items, 6))
    attributes[rng.random(items) < 0.1, 5] = NONE
    return attributes


def _draw_queries(rng: np.random.Generator, queries: int, brands: list[str]) -> tuple[Ints, list[str]]:
    """Distinct queries: more than enough are drawn, the first of each text is kept, in the order of drawing."""
    drawn = 4 * queries + 100
    attributes = rng.integers(0, CARDINALITIES, (drawn, 6))
    named = np.argsort(rng.random((drawn, 4)), axis=1) < rng.choice(3, size=(drawn, 1), p=[0.2, 0.45, 0.35])
    attributes[:, 2:][~named] = NONE
    attributes[rng.random(drawn) < 0.2, 1] = NONE
    plural, noun_first = rng.random(drawn) < 0.15, rng.random(drawn) < 0.2
    texts: dict[str, int] = {}
    for row, words in enumerate(_words(attributes, brands)):
        noun = f"{words[1]} {words[0]}".strip()
        if plural[row]:
            noun += "es" if noun.endswith(("sh", "ch")) else "s"
        extra = " ".join(word for word in words[2:] if word)
        texts.setdefault(" ".join(part for part in ((noun, extra) if noun_first[row] else (extra, noun)) if part), row)
    assert len(texts) >= queries
    kept = list(texts.items())[:queries]
    return attributes[[row for _, row in kept]], [text for text, _ in kept]


def _titles(rng: np.random.Generator, attributes: Ints, brands: list[str]) -> list[str]:
    forms = (  # of noun, kind, colour, material, size, brand, series
        "{5} {4} {3} {1} {0} in {2}",
        "{5} {2} {3} {1} {0} {4}",
        "{5} {6} {1} {0}, {4}, {2} {3}",
    )
    form, series = rng.choice(forms, len(attributes)), rng.choice(_names(rng, 60), len(attributes))
    texts = (f.format(*words, name).strip() for f, words, name in zip(form, _words(attributes, brands), series, strict=True))
    return [text.title().replace(" In", " in") for text in texts]


def _words(attributes: Ints, brands: list[str]) -> list[list[str]]:
    """Per row the words of its six attributes, "" for NONE."""
    nouns, kinds = list(NOUNS), [[*text.split(), ""] for text in NOUNS.values()]
    others = [[*words, ""] for words in (COLOURS, MATERIALS, SIZES, brands)]  # the last one, so NONE
    return [
        [nouns[noun], kinds[noun][kind], *(words[i] for words, i in zip(others, rest, strict=True))]
        for noun, kind, *rest in attributes.tolist()
    ]


def _match(queries: Ints, items: Ints) -> Floats:
    """(Q, I) in 0..1: nothing without the noun; another kind counts a third; half rests on the named attributes."""
    noun = queries[:, None, 0] == items[None, :, 0]
    kind = (queries[:, None, 1] == NONE) | (queries[:, None, 1] == items[None, :, 1])
    found = np.zeros(noun.shape, np.int8)
    for column in range(2, 6):
        found += (queries[:, None, column] == items[None, :, column]) & (queries[:, None, column] != NONE)
    asked = (queries[:, 2:] != NONE).sum(axis=1)[:, None]
    attributes = np.where(asked == 0, 1.0, found / np.maximum(asked, 1))
    return noun * np.where(kind, 1.0, 1 / 3) * (0.5 + 0.5 * attributes)


def _names(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct pronounceable names of three syllables."""
    codes = rng.choice(len(SYLLABLES) ** 3, size=count, replace=False)
    return ["".join(SYLLABLES[code // len(SYLLABLES) ** place % len(SYLLABLES)] for place in range(3)) for code in codes]
