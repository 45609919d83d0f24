"""A simulated search log with planted effects: the embedded default, and the negative controls.

Users u search queries q at times t; the logging ranker shows items i at positions p; a click is examination times attraction:

    P(click) = p^(-0.5 a_position) * sigmoid(z)
    z        = b + s_uq (relevance - r0) + a_taste taste_ui + a_quality quality_i + sum_k a_k effect_k
    s_uq     = max(0, s0 + a_strictness user_strictness_u + a_query query_strictness_q)

The multipliers a are 1 by default; 0 switches an effect off. Those of columns of a log's own (k: price, tags, rating, image,
context, engine, description) and of labels are 0 by default, without which the log has none. They change clicks and nothing
else, and that of labels what follows the clicks (`purchases.py`): the catalogue, the users, the requests and what was shown
stay the same for a seed. Every file says that it is simulated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prectr_torchrec.data.simulate.catalogue import COLOURS, MATERIALS, NUM_BRANDS, Catalogue, Floats, Ints, make_catalogue
from prectr_torchrec.data.simulate.contexts import draw_contexts
from prectr_torchrec.data.simulate.descriptions import draw_descriptions
from prectr_torchrec.data.simulate.engines import draw_engine
from prectr_torchrec.data.simulate.images import draw_images
from prectr_torchrec.data.simulate.planted import Planted, Rows
from prectr_torchrec.data.simulate.prices import Prices, draw_prices
from prectr_torchrec.data.simulate.purchases import Purchases, draw_labels, draw_purchases
from prectr_torchrec.data.simulate.ratings import draw_ratings
from prectr_torchrec.data.simulate.searches import CANDIDATES, DAYS, START, Requests, draw_requests, searched
from prectr_torchrec.data.simulate.tags import draw_tags
from prectr_torchrec.system.locks import writes_folder
from prectr_torchrec.system.paths import only_local

TEST_SHARE = 0.1
TEST_FROM = START + round(DAYS * 86400 * (1 - TEST_SHARE))
BIAS, SLOPE, CENTRE = -0.9, 2.2, 7 / 3  # b, s0, r0
TASTE_DIRECTIONS = 4


class OwnColumns(TypedDict, total=False):
    """Multipliers of effects that come with columns; where one is 0, the log lacks them."""

    price: float
    """Of what users mind about prices: `price` of items, which some lack."""
    tags: float
    """Of what tags are worth, to all and to each user: `tags` of items."""
    rating: float
    """Of how good items are: `rating` of items, which some lack."""
    image: float
    """Of what users like of the items' looks: vectors `image`, which some items lack."""
    context: float
    """Of device and hour: `device` and `hour` of impressions."""
    engine: float
    """Of what the logging engine alone knows: `engine_score` of impressions."""
    description: float
    """Of uses that queries name and titles do not: texts `description` of items, which some lack."""


@dataclass(frozen=True)
class Effects:
    """What clicks depend on beside relevance and position; each before its multiplier."""

    user_strictness: Floats
    """(U,): half of the users strict, a third average, the rest indifferent, as the distance from the mean."""
    query_strictness: Floats
    """(Q,): of the query's category and its own."""
    user_taste: Floats
    """(U, TASTE_DIRECTIONS), zero for a fifth of the users."""
    item_taste: Floats
    """(I, TASTE_DIRECTIONS), from the brand and the words of the title."""
    quality: Floats
    """(I,)"""


@dataclass(frozen=True)
class Ids:
    """Random 63-bit ids: (U,), (Q,) and (I,)."""

    user: Ints
    query: Ints
    item: Ints


@only_local
@writes_folder("out")
def simulate(
    out: Path,
    *,
    requests: int = 12000,
    seed: int = 1,
    users: int = 800,
    queries: int = 400,
    items: int = 2400,
    strictness: float = 1.0,
    query_strictness: float = 1.0,
    taste: float = 1.0,
    quality: float = 1.0,
    position: float = 1.0,
    labels: float = 0.0,
    **columns: Unpack[OwnColumns],
) -> dict[str, Any]:
    """Writes a simulated log: `raw/` as a shop would have it, `eval/` with the oracle, and `meta.json` (last).

    Args:
        out: folder to write to; files of an earlier simulation are replaced.
        requests: searches with a result page of up to six items, spread over 30 days.
        seed: equal arguments and seed give equal files, byte for byte.
        users: drawn with a long tail of activity; some arrive late.
        queries: distinct queries; a tenth of them is never searched, and is graded only under `eval/`.
        items: size of the catalogue.
        strictness, query_strictness: multipliers of the users' and of the queries' strictness about relevance.
        taste, quality: of the users' taste in brands and title words, and of the items' quality.
        position: of the exponent with which examination falls with the position.
        labels: of what carts and orders depend on; where it is not 0, impressions have both, and times of what happened.
        columns: multipliers of columns of the log's own.

    Returns:
        The contents of `meta.json`: settings, counts and `test_from_timestamp`.

    Raises:
        ValueError: a size below one or a negative multiplier.
    """
    multipliers = {"strictness": strictness, "query_strictness": query_strictness, "taste": taste, "quality": quality}
    sizes = {"requests": requests, "users": users, "queries": queries, "items": items}
    optional = cast("dict[str, float]", {**columns, "labels": labels})
    multipliers |= {name: optional[name] for name in (*OwnColumns.__annotations__, "labels") if optional.get(name)}
    _check(sizes, {**multipliers, "position": position})
    # a stream for each part, so that no part's draws move another's
    streams = [np.random.default_rng([seed, part]) for part in range(14)]
    catalogue = make_catalogue(streams[0], items, queries)
    effects, log = _draw_effects(streams[1], catalogue, users), draw_requests(streams[2], catalogue, requests, users)
    planted = _plant(multipliers, [*streams[5:7], *streams[9:]], catalogue, log, users)
    probability = attraction(catalogue, effects, log, multipliers, planted)
    click = _draw_clicks(streams[3], log.position, probability, position)
    purchases = _plant_purchases(streams[7], labels, items, planted)
    ids = Ids(*(streams[4].integers(1, 2**63 - 1, n) for n in (users, queries, items)))
    tables = {
        "raw/impressions": _impressions(catalogue, log, click, ids, streams[8], planted, purchases),
        "raw/items": _items(catalogue, ids, planted),
        "raw/queries": {"query_id": ids.query, "query": catalogue.queries},
        **_judgment_tables(streams[4], catalogue, ids),
        "eval/oracle": _oracle(catalogue, effects, log, probability, position, ids, planted, purchases),
    }
    settings = {"seed": seed, **sizes, **multipliers, "position": position}
    return _write_tables(out, tables, settings, clicks=int(click.sum()))


def _plant(
    multipliers: dict[str, float], streams: list[np.random.Generator], catalogue: Catalogue, log: Requests, users: int
) -> dict[str, Planted]:
    """The effects of a log's own columns that are not switched off, by their multipliers' names."""
    items = len(catalogue.item_attributes)
    draw: dict[str, Callable[[np.random.Generator], Planted]] = {
        "price": lambda rng: draw_prices(rng, items, users),
        "tags": lambda rng: draw_tags(rng, items, users),
        "rating": lambda rng: draw_ratings(rng, items),
        "image": lambda rng: draw_images(rng, items, users),
        "context": lambda rng: draw_contexts(rng, log.timestamp, catalogue.item_attributes[:, 0]),
        "engine": lambda rng: draw_engine(rng, catalogue.grades[log.query[:, None], log.candidates]),
        "description": lambda rng: draw_descriptions(rng, catalogue, log.query),
    }
    return {name: draw[name](rng) for name, rng in zip(draw, streams, strict=True) if name in multipliers}


def _plant_purchases(rng: np.random.Generator, strength: float, items: int, planted: dict[str, Planted]) -> Purchases | None:
    """None: there are none."""
    prices = planted.get("price")
    dearness = prices.dearness if isinstance(prices, Prices) else None
    return draw_purchases(rng, strength, items, dearness) if strength else None


def _draw_clicks(rng: np.random.Generator, position: Ints, probability: Floats, exponent: float) -> NDArray[np.bool_]:
    """Of shown candidates: examination falls with the position's `exponent`."""
    return (position > 0) & (rng.random(probability.shape) < _examination(position, exponent) * probability)


def _examination(position: Ints, exponent: float) -> Floats:
    return np.asarray(np.maximum(position, 1.0) ** (-0.5 * exponent))


def _draw_judged(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pairs of queries and items are judged, and which are of queries that nobody searches for."""
    judged = rng.random(shape) < 0.9
    return judged, np.broadcast_to(np.arange(shape[0])[:, None] >= searched(shape[0]), shape)


def _write_tables(out: Path, tables: dict[str, dict[str, Any]], settings: dict[str, float], *, clicks: int) -> dict[str, Any]:
    """Writes all files, `meta.json` last; returns that."""
    for name, columns in tables.items():
        _write(columns, out / f"{name}.parquet")
    note = "Simulated search log: users, exposure, clicks, titles and grades are all generated. eval/ is for measuring only.\n"
    (out / "README.txt").write_text(note, encoding="utf-8")
    counts = {name.split("/")[1]: len(next(iter(columns.values()))) for name, columns in tables.items()}
    meta = {
        "simulated": True,
        "settings": settings,
        "counts": {**counts, "clicks": clicks},
        "test_from_timestamp": TEST_FROM,
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return meta


def attraction(
    catalogue: Catalogue,
    effects: Effects,
    log: Requests,
    multipliers: dict[str, float],
    planted: dict[str, Planted] | None = None,
) -> Floats:
    """The click probability at position 1 of every candidate of every request, (R, CANDIDATES)."""
    item = catalogue.pool[log.query[:, None], log.candidates]
    relevance = catalogue.grades[log.query[:, None], log.candidates]
    user, query = effects.user_strictness[log.user], effects.query_strictness[log.query]
    slope = np.maximum(0, SLOPE + multipliers["strictness"] * user + multipliers["query_strictness"] * query)
    logit = BIAS + slope[:, None] * (relevance - CENTRE)
    logit += multipliers["taste"] * _taste(effects, log.user, item) + multipliers["quality"] * effects.quality[item]
    rows = Rows(np.arange(len(item)), log.user, item)
    for name, effect in (planted or {}).items():
        logit += multipliers[name] * effect.effect(rows)
    return 1 / (1 + np.exp(-logit))


def _taste(effects: Effects, user: Ints, item: Ints) -> Floats:
    return np.einsum("rd,rcd->rc", effects.user_taste[user], effects.item_taste[item])


def _draw_effects(rng: np.random.Generator, catalogue: Catalogue, users: int) -> Effects:
    kind = rng.choice(3, size=users, p=[1 / 2, 1 / 3, 1 / 6])
    strictness = np.array([1.6, -0.8, -3.2])[kind] + rng.normal(0, 0.2, users)
    nouns = catalogue.query_attributes[:, 0]
    by_query = rng.normal(0, 0.9, nouns.max() + 1)[nouns] + rng.normal(0, 0.6, len(nouns))

    user_taste = rng.normal(0, 0.9, (users, TASTE_DIRECTIONS)) * (rng.random((users, 1)) >= 0.2)
    _, _, colour, material, _, brand = catalogue.item_attributes.T
    brands = np.vstack([rng.normal(size=(NUM_BRANDS, TASTE_DIRECTIONS)), np.zeros((1, TASTE_DIRECTIONS))])  # row -1: no brand
    colours, materials = (rng.normal(size=(len(words), TASTE_DIRECTIONS)) for words in (COLOURS, MATERIALS))
    item_taste = 0.6 * brands[brand] + 0.4 * (colours[colour] + materials[material])
    return Effects(strictness, by_query, user_taste, item_taste, rng.normal(0, 0.6, len(brand)))


def _items(catalogue: Catalogue, ids: Ids, planted: dict[str, Planted]) -> dict[str, Any]:
    category, brand = (catalogue.item_attributes[:, place] + 1 for place in (0, 5))
    columns = {"item_id": ids.item, "title": catalogue.titles, "category_id": category, "brand_id": brand}
    return columns | {name: values for effect in planted.values() for name, values in effect.item_columns().items()}


def _impressions(
    catalogue: Catalogue,
    log: Requests,
    click: NDArray[np.bool_],
    ids: Ids,
    rng: np.random.Generator,
    planted: dict[str, Planted],
    purchases: Purchases | None,
) -> dict[str, Any]:
    request, column = np.nonzero(log.position)
    by_position = np.lexsort((log.position[request, column], request))
    request, column = request[by_position], column[by_position]
    query = log.query[request]
    place = log.candidates[request, column]
    item = catalogue.pool[query, place]
    columns = {
        "request_id": request,
        "timestamp": log.timestamp[request],
        "user_id": ids.user[log.user[request]],
        "query_id": ids.query[query],
        "item_id": ids.item[item],
        "position": log.position[request, column],
        "click": click[request, column].astype(np.int64),
    }
    for effect in planted.values():
        columns |= effect.impression_columns(request, column)
    if purchases is None:
        return columns
    chances = purchases.chances(item, catalogue.grades[query, place] - CENTRE)
    return columns | draw_labels(rng, log.timestamp[request], click[request, column], *chances)


def _judgment_tables(rng: np.random.Generator, catalogue: Catalogue, ids: Ids) -> dict[str, dict[str, Any]]:
    judged, unseen = _draw_judged(rng, catalogue.grades.shape)
    return {
        "raw/judgments": _judgments(catalogue, judged & ~unseen, ids),
        "eval/judgments_unseen_queries": _judgments(catalogue, unseen, ids),
    }


def _judgments(catalogue: Catalogue, judged: NDArray[np.bool_], ids: Ids) -> dict[str, Any]:
    query, column = np.nonzero(judged)
    item = catalogue.pool[query, column]
    return {"query_id": ids.query[query], "item_id": ids.item[item], "relevance": catalogue.grades[query, column]}


def _oracle(
    catalogue: Catalogue,
    effects: Effects,
    log: Requests,
    probability: Floats,
    exponent: float,
    ids: Ids,
    planted: dict[str, Planted],
    purchases: Purchases | None,
) -> dict[str, Any]:
    """Every candidate of the test requests, shown or not, with its true probability and what that is made of."""
    test = np.nonzero(log.timestamp >= TEST_FROM)[0]
    user, query = log.user[test], log.query[test]
    item = catalogue.pool[query[:, None], log.candidates[test]]
    shown = log.position[test].ravel()
    relevance = catalogue.grades[query[:, None], log.candidates[test]]
    oracle = {
        "request_id": np.repeat(test, CANDIDATES),
        "item_id": ids.item[item].ravel(),
        "exposed": shown > 0,
        "examination": pa.array(_examination(shown, exponent), mask=shown == 0),
        "relevance": relevance.ravel(),
        "probability": probability[test].ravel(),
        "user_strictness": np.repeat(effects.user_strictness[user], CANDIDATES),
        "query_strictness": np.repeat(effects.query_strictness[query], CANDIDATES),
        "taste": _taste(effects, user, item).ravel(),
        "quality": effects.quality[item].ravel(),
    }
    rows = Rows(test, user, item)
    of_candidates = np.repeat(test, CANDIDATES), np.tile(np.arange(CANDIDATES), len(test))
    for name, effect in planted.items():
        oracle |= {f"{name}_effect": effect.effect(rows).ravel(), **effect.impression_columns(*of_candidates)}
    if purchases is not None:
        cart, order = (chance.ravel() for chance in purchases.chances(item, relevance - CENTRE))
        oracle["cart_probability"] = oracle["probability"] * cart
        oracle["order_probability"] = oracle["cart_probability"] * order
    return oracle


def _write(columns: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata({"simulated": "true"}), path)


def _check(sizes: dict[str, int], multipliers: dict[str, float]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    for name, multiplier in multipliers.items():
        if not 0 <= multiplier < float("inf"):
            raise ValueError(f"{name} is {multiplier}; a multiplier is 0 (off) or positive, 1 by default")
