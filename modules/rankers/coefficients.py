"""Which rows of coefficients mixed effects may have, and how many coefficients each."""

from __future__ import annotations

from collections.abc import Mapping

from ..declared_effects import COORDINATE_SD

SUFFIX = "_effect"
"""A looked-up feature whose name ends so has rows of effects."""
COUNTED = {"user": "user", "query": "query", "group": "query's group", "item": "item"}
"""Whose rows there can be, and what they are called."""
OCCURRENCES = {f"{who}{SUFFIX}": f"{who}_trained" for who in COUNTED}
"""What is counted of how often the rows of a feature are trained on."""


def valid_dims(declared: int, rank: int) -> dict[int, str]:
    """How many coefficients there can be, and what the last ones are of.

    Args:
        declared: coordinates of declared columns.
        rank: of tastes.
    """
    valid = {1: "an offset", 2: "and a slope"}
    valid |= {2 + declared: f"and {declared} of declared columns"} if declared else {}
    return valid | ({2 + declared + rank: f"and {rank} of taste"} if rank else {})


def start_sds(dim: int) -> list[float]:
    """Of the priors of an offset, a slope, and coefficients of declared columns, where their estimates start.

    Args:
        dim: how many of these there are.
    """
    return [1.0, 1.0, *[COORDINATE_SD] * dim][:dim]


def meanings(valid: Mapping[int, str]) -> str:
    """In words.

    Args:
        valid: as of `valid_dims`.
    """
    return ", ".join(f"{dim} ({what})" for dim, what in valid.items())


def coefficients(name: str, width: int, valid: Mapping[int, str]) -> int:
    """How many a row has. Tables are of multiples of 4, so that up to 3 of its numbers stay unread.

    Args:
        name: of the feature.
        width: of its rows.
        valid: as of `valid_dims`.

    Raises:
        ValueError: it is of no known feature, or ends amid coefficients that belong together.
    """
    if name not in OCCURRENCES:
        raise ValueError(f"no occurrences are counted for {name}; valid: {', '.join(OCCURRENCES)}")
    dim = max((dim for dim in valid if 2 * dim <= width), default=0)
    if width - 2 * dim > 3:
        raise ValueError(
            f"a row of {name} is {width} wide, for mean and width of {width // 2} coefficients; valid: {meanings(valid)}"
        )
    return dim
