"""Where the values of a batch lie in its packed arrays, one of each dtype; the same for all batches of a reader."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from prectr_torchrec.data.column_kinds import Label, View
from prectr_torchrec.data.columns import Column, Family


class Entry(NamedTuple):
    """A view that a batch has.

    Attributes:
        family: whose it is.
        key: its name there.
        column: the sample column that it is made of; None: of no column, or the samples have nothing of it.
        feature: whether rankers read it.
    """

    family: Family
    key: str
    view: View
    column: Column | None = None
    feature: bool = False

    @property
    def name(self) -> str:
        """In the batch."""
        return self.key if self.family == "request" else f"{self.family}_{self.key}"


class Place(NamedTuple):
    """Values of one dtype and shape, side by side: `number` of them for each of R requests or of C candidates.

    They begin at `requests * R + candidates * C` of the packed array of their dtype.
    """

    dtype: str
    of_candidates: bool
    number: int
    shape: tuple[int, ...]
    requests: int
    candidates: int

    def view(self, packed: Mapping[str, Any], requests: int, candidates: int) -> Any:
        """(number, R or C, ...) of packed arrays or tensors, without a copy."""
        rows = candidates if self.of_candidates else requests
        start = self.requests * requests + self.candidates * candidates
        stop = start + self.number * rows * math.prod(self.shape)
        return packed[self.dtype][start:stop].reshape(self.number, rows, *self.shape)

    def nth(self, n: int) -> Place:
        """The place of one of the values."""
        before = n * math.prod(self.shape)
        requests, candidates = (0, before) if self.of_candidates else (before, 0)
        return self._replace(number=1, requests=self.requests + requests, candidates=self.candidates + candidates)


class Block(NamedTuple):
    """Views that lie side by side.

    Attributes:
        family: whose they are.
        keys: their names there.
        feature: whether rankers read them.
        place: of all of them.
    """

    family: Family
    keys: tuple[str, ...]
    feature: bool
    place: Place


@dataclass(frozen=True)
class Layout:
    """All views of a batch.

    Attributes:
        blocks: views of equal owner, dtype and shape.
        places: of each view, by its name in the batch.
        labels: what is to be learned of candidates.
        texts: text -> name of the view that tells who has which.
    """

    blocks: tuple[Block, ...]
    places: dict[str, Place]
    labels: tuple[str, ...]
    texts: dict[str, str]

    def sizes(self, requests: int, candidates: int) -> dict[str, int]:
        """Values of each dtype's packed array."""
        sizes: dict[str, int] = {}
        for block in self.blocks:
            rows = candidates if block.place.of_candidates else requests
            size = block.place.number * rows * math.prod(block.place.shape)
            sizes[block.place.dtype] = sizes.get(block.place.dtype, 0) + size
        return sizes


def make_layout(blocks: Sequence[Sequence[Entry]], limits: Mapping[str, int], *, texts: Mapping[str, str]) -> Layout:
    """Lays out the entries of a batch.

    Args:
        blocks: as of `entry_blocks`.
        limits: L and M, the events that a row has room for, by list.
        texts: text -> name of the view that tells who has which.
    """
    made: list[Block] = []
    places: dict[str, Place] = {}
    ends = {"int64": (0, 0), "float32": (0, 0)}
    for entries in blocks:
        first, dtype = entries[0], np.dtype(entries[0].view.dtype).name
        shape = _row_shape(first, limits)
        place = Place(dtype, first.family == "candidate", len(entries), shape, *ends[dtype])
        after = place.nth(len(entries))
        ends[dtype] = (after.requests, after.candidates)
        made.append(Block(first.family, tuple(entry.key for entry in entries), first.feature, place))
        places |= {entry.name: place.nth(number) for number, entry in enumerate(entries)}
    columns = (entry.column for entries in blocks for entry in entries if entry.column)
    labels = dict.fromkeys(column.key for column in columns if isinstance(column.kind, Label))
    return Layout(tuple(made), places, tuple(labels), dict(texts))


def entry_blocks(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries of equal owner, dtype and shape together, in the order given."""
    blocks: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        # what the samples have nothing of lies apart: it is empty, or zero
        missing = entry.feature and entry.column is None
        blocks.setdefault((entry.family, entry.feature, entry.view.dtype, entry.view.shape, missing), []).append(entry)
    return list(blocks.values())


def _row_shape(entry: Entry, limits: Mapping[str, int]) -> tuple[int, ...]:
    if entry.family in limits:  # an event's number is (L,), no feature of width 1
        shape = () if entry.view.shape == (1,) else entry.view.shape
        return (limits[entry.family] if entry.column or not entry.feature else 0, *shape)
    return entry.view.shape
