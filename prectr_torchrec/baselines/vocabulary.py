"""From impressions to the rows of the mixed-effects regression's tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prectr_torchrec.baselines.impressions import Impressions
from prectr_torchrec.baselines.samples import TextPairs
from prectr_torchrec.config.data import DataConfig, Levels

TITLE_WORDS = 16
"""Frequent words kept of a title."""
REFERENCE = 1
"""The position that stands for one that was not logged."""


class Pairs(NamedTuple):
    """n candidates as table rows; row 0 of a table stands for what was not trained on, and is zero."""

    rows: dict[str, Tensor]
    """`user`, `query`, `group`, `item` and the item attributes, (n,) int64 each."""
    words: Tensor
    """(n, 16) int64."""
    word_weight: Tensor
    """(n, 16), their squares sum to 1 or are all 0."""
    grade: Tensor
    """(n, 2 K) the grade on piecewise linear knots, and the same where it is a predicted one, else 0."""
    slope: Tensor
    """(n, 2) one, and the grade from the middle of the grades."""
    position: Tensor
    """(n,) int64 from 1; the reference where none was logged."""

    def take(self, index: Tensor) -> Pairs:
        """The pairs at these places."""
        return Pairs({name: rows[index] for name, rows in self.rows.items()}, *(column[index] for column in self[1:]))


@dataclass(frozen=True)
class Vocabulary:
    """What the training part knows.

    Attributes:
        ids: table -> the column that it is looked up by, and that column's distinct values, sorted; value k is row k + 1.
        stems: the frequent words' stems, sorted; stem k is row k + 1.
        positions: the deepest logged position; deeper ones share its examination.
    """

    ids: dict[str, tuple[str, NDArray[np.int64]]]
    stems: NDArray[np.int64]
    positions: int
    levels: Levels
    texts: TextPairs

    @classmethod
    def fit(cls, train: Impressions, data: DataConfig, texts: TextPairs, word_share: float) -> Vocabulary:
        """Args: word_share: of the distinct titles of the training part that have to contain a word."""
        columns = {"user": "user_id", "query": "query_id", "group": "group_id", "item": "candidate_item_id"}
        columns |= {name: f"candidate_{name}" for name in data.ids_of("items")}
        titles = [train.titles[i] for i in np.unique(train.values["title"])]
        stems = _once_a_title(texts.title_stems(titles))
        frequency = np.bincount(stems[stems > 0], minlength=1)
        frequent = np.flatnonzero(frequency >= max(word_share * len(titles), 1))
        ids = {table: (column, np.unique(train.values[column])) for table, column in columns.items()}
        ids["user"] = ("user_id", np.setdiff1d(ids["user"][1], [0]))  # nobody known has no row of their own
        positions = max(int(train.values["candidate_position"].max()), REFERENCE)
        return cls(ids, frequent, positions, data.levels, texts)

    def encode(self, impressions: Impressions) -> Pairs:
        """The rows of impressions, and their numbers."""
        rows = {table: _index(known, impressions.values[column]) for table, (column, known) in self.ids.items()}
        words, weight = self._words(impressions.titles)
        knots = np.linspace(self.levels.grade_min, self.levels.grade_max, self.levels.count)
        grade, predicted, title = (impressions.values[name] for name in ("grade", "predicted", "title"))
        basis = np.stack([np.interp(grade, knots, knot) for knot in np.eye(len(knots))], axis=1)
        slope = np.stack([np.ones(len(grade)), grade - knots.mean()], axis=1)
        position = impressions.values["candidate_position"].astype(np.int64)
        position = np.where(position == 0, REFERENCE, np.minimum(position, self.positions))
        return Pairs(
            {table: torch.from_numpy(row) for table, row in rows.items()},
            torch.from_numpy(words[title]),
            torch.from_numpy(weight[title]),
            torch.from_numpy(np.concatenate([basis, basis * predicted[:, None]], axis=1).astype(np.float32)),
            torch.from_numpy(slope.astype(np.float32)),
            torch.from_numpy(position),
        )

    def occurrences(self, train: Pairs) -> dict[str, Tensor]:
        """Table -> (N,) how often each of its rows occurs."""
        counts = {table: torch.bincount(train.rows[table], minlength=len(ids) + 1) for table, (_, ids) in self.ids.items()}
        return counts | {"word": torch.bincount(train.words.flatten(), minlength=len(self.stems) + 1)}

    def _words(self, titles: list[str]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(titles, 16) rows of the frequent words and their weights."""
        rows = _index(self.stems, _once_a_title(self.texts.title_stems(titles)))
        first = np.argsort(rows == 0, axis=1, kind="stable")[:, :TITLE_WORDS]
        words = np.take_along_axis(rows, first, axis=1)
        there = (words > 0).astype(np.float32)
        return words, there / np.sqrt(np.maximum(there.sum(axis=1, keepdims=True), 1))


def _index(known: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.int64]:
    """1 + the place of each value among the sorted known ones, 0 for others."""
    if not len(known):
        return np.zeros(values.shape, np.int64)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[place] == values, place + 1, 0)


def _once_a_title(stems: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted within each title, what occurs again replaced with 0."""
    stems = np.sort(stems, axis=1)
    again = np.zeros(stems.shape, bool)
    again[:, 1:] = stems[:, 1:] == stems[:, :-1]
    return np.where(again, 0, stems)
