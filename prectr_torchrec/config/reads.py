"""What a ranker reads of a batch besides looked-up ids, by the names that its inputs have."""

from __future__ import annotations

from typing import NamedTuple

COUNTS = ("user_events", "user_query_events", "query_events")
COUNTED = ("shown", "clicked", "examined")
"""What the counters count; `examined` weights each event by the examination of its position."""


class Reads(NamedTuple):
    """The reader brings nothing else."""

    request: frozenset[str] = frozenset()
    """Counts, and counters such as `user_shown`."""
    candidate: frozenset[str] = frozenset()
    """Counters of the item, such as `shown`; position, grade and label are always there."""
    sequences: frozenset[str] = frozenset()
    """`history`, `peer`."""
    texts: frozenset[str] = frozenset()
    """`query`, `title`, `history_title`."""
    declared: frozenset[str] = frozenset()
    """Kinds of the columns of `data.columns` that are read, all of a kind: `number`, `vector`, `text`; `label`: counters of
    labels; `history_vector`, `peer_vector`: vectors of the items of past events."""


def counters(whose: str, *, corrected: bool) -> frozenset[str]:
    """Of `user`, `query`, `group` or `item`; position-corrected ones with what was examined."""
    prefix = "" if whose == "item" else f"{whose}_"
    return frozenset(f"{prefix}{what}" for what in COUNTED if corrected or what != "examined")
