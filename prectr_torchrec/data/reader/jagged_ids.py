"""The table rows of the features of one stride, as they are collected for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.data.list_kinds import Bags


class JaggedIds:
    """Lists of ids by feature.

    Args:
        features: how many there are.
        stride: rows of each.
        weighted: whether the ids of some have weights; those of the others then count 1.
        averaged: features whose ids then count their share of their list instead.

    Attributes:
        lengths: (features, stride), of the lists.
    """

    def __init__(self, features: int, stride: int, *, weighted: bool, averaged: Sequence[int] = ()) -> None:
        self._averaged = averaged
        self.lengths = np.zeros((features, stride), np.int64)
        self._values: list[NDArray[np.int64]] = []
        self._weights: list[NDArray[np.float32]] | None = [] if weighted else None

    def add(self, values: NDArray[np.int64], weights: NDArray[np.float32] | None = None) -> None:
        """Adds ids behind the others, feature by feature."""
        self._values.append(values)
        if self._weights is not None:
            self._weights.append(np.ones(len(values), np.float32) if weights is None else weights)

    def add_bags(self, feature: int, pieces: list[Bags], weights: list[Bags] | None) -> None:
        """Adds all lists of a feature; what is left of its rows is empty."""
        lengths = np.concatenate([bags.lengths for bags in pieces]) if pieces else np.zeros(0, np.int64)
        self.lengths[feature, : len(lengths)] = lengths
        for number, bags in enumerate(pieces):
            self.add(bags.values, None if weights is None else weights[number].values)

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """`name.values`, `name.lengths` and, of weighted ones, `name.weights`."""
        found = {f"{name}.values": _joined(self._values, np.int64), f"{name}.lengths": self.lengths.reshape(-1)}
        if self._weights is not None:
            found[f"{name}.weights"] = weights = _joined(self._weights, np.float32)
            ends = np.cumsum(self.lengths.sum(axis=1))
            for feature in self._averaged:
                lengths = self.lengths[feature]
                weights[ends[feature] - lengths.sum() : ends[feature]] = np.repeat(1 / np.maximum(lengths, 1), lengths)
        return found


def _joined(parts: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
