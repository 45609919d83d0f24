"""How often a position is looked at, and what an event at it weighs for that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

MAX_POSITION = 20
MIN_CLICKS = 50
"""Expected at a position before its own estimate is trusted."""
MIN_EXAMINATION = 0.01
_UNIT = 2.0**-20


def estimate_examination(con: duckdb.DuckDBPyConnection, before: int, levels: int, *, known: str | None = None) -> list[float]:
    """The examination of positions 1, 2, ... against position 1, from the events strictly before a moment.

    Standardised indirectly: the clicks of a position over those its shown levels would have had at position 1, so that
    relevant items standing on top do not count as examination.

    Args:
        con: connection with the table `events`.
        before: timestamp.
        levels: K.
        known: column of the moments at which clicks are known, as those are not before; None: with their events.

    Returns:
        Values in [0.01, 1], the first one 1. A position with too few expected clicks takes the value above it, and
        the curve ends with the last trusted one; it is [1.0] where position 1 itself has too few clicks.
    """
    shown, clicks = np.zeros((2, levels + 1, MAX_POSITION))
    clicks_known = f"coalesce(sum(click) FILTER (WHERE {known} < {before}), 0)" if known else "sum(click)"
    counted = con.execute(
        f"SELECT level, position, count(*), {clicks_known} FROM events "
        f"WHERE timestamp < {before} AND position BETWEEN 1 AND {MAX_POSITION} GROUP BY ALL"
    )
    for level, position, of_shown, of_clicks in counted.fetchall():
        shown[level, position - 1], clicks[level, position - 1] = of_shown, of_clicks
    comparable = shown[:, 0] > 0
    shown, clicks = shown[comparable], clicks[comparable]
    expected = (shown * (clicks[:, :1] / shown[:, :1])).sum(0)
    trusted = expected >= MIN_CLICKS
    if not trusted[0]:
        return [1.0]
    curve = np.clip(clicks.sum(0) / np.where(trusted, expected, 1), MIN_EXAMINATION, 1)
    curve[0] = 1
    last_trusted = np.maximum.accumulate(np.where(trusted, np.arange(MAX_POSITION), 0))
    return [float(value) for value in curve[last_trusted][: last_trusted[-1] + 1]]


def position_weights(examination: Sequence[float]) -> NDArray[np.float64]:
    """(positions + 1,) what an event weighs by its position; index 0: not logged.

    Rounded to multiples of 2**-20, so that running totals and differences of them are exact: no order of the events, and
    no event left out, shows in a counter.
    """
    return np.concatenate([[1.0], np.maximum(np.round(np.array(examination) / _UNIT), 1) * _UNIT])


def weights_at(weights: NDArray[np.float64], position: NDArray[Any]) -> NDArray[np.float64]:
    """The weights of events at positions of any shape; positions beyond the last weight share it."""
    return weights[np.minimum(position, len(weights) - 1)]
