from __future__ import annotations

from itertools import permutations
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from prectr_torchrec.config.run import validate_config
from prectr_torchrec.data.prepare.examination import estimate_examination, position_weights, weights_at
from prectr_torchrec.system.errors import ConfigError

PLANTED = 1 / np.arange(1, 13) ** 0.6


def estimate(events: dict[str, Any], before: int = 10, levels: int = 4) -> list[float]:
    with duckdb.connect() as con:
        con.register("given", pa.table(events))
        con.execute("CREATE TABLE events AS SELECT * FROM given")
        return estimate_examination(con, before, levels)


def planted_events(size: int = 400_000, seed: int = 0) -> dict[str, Any]:
    """Relevant items stand on top more often than not, and are clicked more often; level 0 is half of all."""
    rng = np.random.default_rng(seed)
    position = rng.integers(1, 13, size)
    level = np.clip(np.round(4.5 - position / 4 + rng.normal(0, 1.2, size)), 1, 4).astype(int) * (rng.random(size) < 0.5)
    click = rng.random(size) < np.array([0.3, 0.05, 0.2, 0.5, 0.8])[level] * PLANTED[position - 1]
    return {"timestamp": np.zeros(size, int), "level": level, "position": position, "click": click.astype(np.int8)}


def test_a_planted_curve_is_recovered() -> None:
    events = planted_events()
    assert estimate(events) == pytest.approx(PLANTED.tolist(), rel=0.06)
    rates = np.array([events["click"][events["position"] == p].mean() for p in range(1, 13)])
    assert rates[-1] / rates[0] < 0.7 * PLANTED[-1]  # without regard to levels it would be far off


def test_events_from_the_moment_on_do_not_count() -> None:
    events = planted_events(20_000)
    later = {name: np.concatenate([values, values]) for name, values in events.items()}
    later["timestamp"][20_000:] = 10
    later["click"][20_000:] = 1
    assert estimate(later) == estimate(events)


def test_positions_with_few_clicks_take_the_value_above_and_deeper_ones_share_the_last() -> None:
    counts = [(1, 1000, 500), (2, 1000, 300), (3, 20, 1), (4, 1000, 100), (5, 50, 20), (21, 1000, 900), (0, 1000, 999)]
    shown = {p: n for p, n, _ in counts}
    clicks = np.concatenate([np.arange(n) < c for _, n, c in counts]).astype(np.int8)
    position = np.repeat(list(shown), list(shown.values()))
    events = {"timestamp": position * 0, "level": position * 0 + 2, "position": position, "click": clicks}
    assert estimate(events) == pytest.approx([1.0, 0.6, 0.6, 0.2])


def test_it_is_never_above_one_nor_nothing() -> None:
    position = np.repeat([1, 2, 3], 1000)
    click = (np.tile(np.arange(1000), 3) < np.array([0, 200, 900, 0])[position]).astype(np.int8)
    events = {"timestamp": position * 0, "level": position * 0, "position": position, "click": click}
    assert estimate(events) == [1.0, 1.0, 0.01]


@pytest.mark.parametrize(("position", "click"), [(0, 1), (1, 0), (2, 1)])
def test_without_positions_or_clicks_all_positions_are_equal(position: int, click: int) -> None:
    same = np.ones(1000, int)
    assert estimate({"timestamp": same, "level": same, "position": same * position, "click": same * click}) == [1.0]


def test_weights_are_by_position_and_deeper_ones_share_the_last() -> None:
    weights = position_weights([0.9, 0.5, 0.2])
    assert weights_at(weights, np.array([[0, 1, 2], [3, 4, 32767]], np.int16)) == pytest.approx(
        np.array([[1, 0.9, 0.5], [0.2, 0.2, 0.2]]), abs=1e-6
    )
    assert position_weights([1e-9])[1] > 0


def test_no_order_of_the_events_shows_in_their_total() -> None:
    weights = position_weights([0.1, 0.7, 0.3, 1e5 / 3e5])[1:]
    assert len({float(np.cumsum(order)[-1]) for order in permutations([*weights, 1e9])}) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0, 0.0], r"data.examination.1: Input should be greater than 0; got 0.0"),
        ([1.2], r"data.examination.0: Input should be less than or equal to 1; got 1.2"),
        ([float("nan")], r"data.examination.0: Input should be .*; got nan"),
        ([], r"data.examination: List should have at least 1 item"),
    ],
)
def test_values_that_are_no_chances_are_refused(given: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config({"name": "x", "data": {"examination": given}}, "test")
