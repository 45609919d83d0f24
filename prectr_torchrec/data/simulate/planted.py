"""What the columns of a log's own do to the clicks of a simulated log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from prectr_torchrec.data.simulate.catalogue import Floats, Ints


class Rows(NamedTuple):
    """R requests with C candidates each.

    Attributes:
        request: (R,) their places in the log.
        user: (R,)
        item: (R, C)
    """

    request: Ints
    user: Ints
    item: Ints


class Planted(ABC):
    """An effect, and the columns that tell of it."""

    @abstractmethod
    def effect(self, rows: Rows) -> Floats:
        """(R, C) logits, before the multiplier."""

    def item_columns(self) -> dict[str, Any]:
        """What the items have, (I,) each."""
        return {}

    def impression_columns(self, request: Ints, candidate: Ints) -> dict[str, Any]:
        """What n impressions have, (n,) each, by their requests and the candidates' places there."""
        return {}
