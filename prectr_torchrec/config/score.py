"""What candidates are ranked by: what the labels are worth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from prectr_torchrec.config.base import Section
from prectr_torchrec.config.columns import Declared, NumberColumn, TimeColumn


class ColumnWorth(Section):
    """A label is worth a number of the candidate."""

    times: str
    """The number, a column of items or impressions; where a candidate lacks it, the label is worth nothing."""


Worth = float | ColumnWorth


def _one_kind(given: Any) -> Any:
    """So that an error speaks of what was written, and not of all that it could have been."""
    if isinstance(given, ColumnWorth):
        return given
    if isinstance(given, Mapping) and given.keys() == {"times"}:
        return ColumnWorth.model_validate(given)
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise ValueError("give a finite number, or {times: <a number of the candidate>}")
    return float(given)


Score = Annotated[dict[str, Annotated[Worth, BeforeValidator(_one_kind)]], Field(min_length=1)]
CLICK_ALONE: dict[str, Worth] = {"click": 1.0}
"""A score that is the click probability."""


def multiplied(score: Mapping[str, Worth]) -> dict[str, str]:
    """Label -> the number of the candidate that it is worth."""
    return {label: worth.times for label, worth in score.items() if isinstance(worth, ColumnWorth)}


def numbers_of_candidates(declared: Iterable[Declared]) -> list[str]:
    """The declared numbers that a label can be worth."""
    numbers = (d for d in declared if isinstance(d.settings, NumberColumn) and not isinstance(d.settings, TimeColumn))
    return [d.name for d in numbers if d.place in ("items", "impressions")]


def read_score(plain: Mapping[str, Any]) -> dict[str, Worth]:
    """A score of plain values."""
    return {label: ColumnWorth(**worth) if isinstance(worth, Mapping) else worth for label, worth in plain.items()}


def plain_score(score: Mapping[str, Worth]) -> dict[str, Any]:
    """A score as plain values."""
    return {label: worth.model_dump() if isinstance(worth, ColumnWorth) else worth for label, worth in score.items()}


def score_text(score: Mapping[str, Worth]) -> str:
    """A score in words.

    Example::

        assert score_text({"click": 1.0, "order": ColumnWorth(times="price")}) == "1 click + price x order"
    """
    parts = (f"{w.times} x {label}" if isinstance(w, ColumnWorth) else f"{w:g} {label}" for label, w in score.items())
    return " + ".join(parts)
