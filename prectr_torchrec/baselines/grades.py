"""What is known of a pair's relevance: its grade, or what a relevance service or its texts predict of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor

from prectr_torchrec.baselines.samples import Samples, TextPairs, per_candidate
from prectr_torchrec.config.data import Levels
from prectr_torchrec.data.levels import unpack_levels
from prectr_torchrec.data.reader.flat import Texts

Floats = NDArray[np.float32]
MAX_DRAWN = 30_000
_COLUMNS = ("query", "candidate_item_id", "candidate_title", "candidate_relevance")


class TextGrades:
    """Predicts the grade of a pair from its match features, by boosted trees on the squared error.

    It learns from the graded pairs of the `judgments` split, or of the train split where there are no judgments, and from
    pairs drawn at random, which it takes for irrelevant: what is graded is mostly relevant.
    """

    def __init__(self, levels: Levels, regressor: HistGradientBoostingRegressor | None) -> None:
        self._levels, self._regressor = levels, regressor

    @classmethod
    def fit(cls, samples: Samples, texts: TextPairs, seed: int) -> TextGrades:
        """Learns from a prepared folder; without a graded pair, every prediction is the middle of the grades."""
        levels = samples.data.levels
        split = "judgments" if samples.has("judgments") else "train"
        parts = [part for part in _graded(samples, texts, split, np.random.default_rng(seed)) if len(part[1])]
        if not parts:
            return cls(levels, None)
        features, grades, drawn = (np.concatenate(column) for column in zip(*parts, strict=True))
        drawn = np.random.default_rng(seed).permutation(drawn)[:MAX_DRAWN]
        targets = np.concatenate([grades, np.full(len(drawn), levels.grade_min)])
        regressor = HistGradientBoostingRegressor(max_iter=200, random_state=seed)
        return cls(levels, regressor.fit(np.concatenate([features, drawn]), targets))

    def predict(self, features: Floats) -> Floats:
        """(n,) grades of the pairs with these (n, 24) match features."""
        low, high = self._levels.grade_min, self._levels.grade_max
        if self._regressor is None or not len(features):
            return np.full(len(features), (low + high) / 2, np.float32)
        return np.clip(self._regressor.predict(features), low, high).astype(np.float32)


def known_or_predicted(relevance: Floats, packed: NDArray[np.int64], by_text: Floats, levels: Levels) -> Floats:
    """The grade where there is one, else that of the predicted levels, else that of the texts.

    Args:
        relevance: (n,) NaN where missing.
        packed: (n,) predicted levels as in the samples, 0: none.
        by_text: (n,) grades that `TextGrades` predicts.
    """
    predicted = unpack_levels(packed, levels.count) @ np.array(levels.grades, np.float32)
    return np.where(np.isnan(relevance), np.where(packed != 0, predicted, by_text), relevance)


def _graded(samples: Samples, texts: TextPairs, split: str, rng: np.random.Generator) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Match features and grades of the distinct graded pairs of a row group, and features of as many drawn pairs."""
    for columns in samples.columns(split, _COLUMNS):
        query, title, grade = (
            per_candidate(columns, "query"),
            columns.texts["candidate_title"],
            columns.values["candidate_relevance"],
        )
        pair = query.index.astype(np.int64) * len(title.distinct) + title.index
        known = np.flatnonzero(~np.isnan(grade))
        rows = known[np.unique(pair[known], return_index=True)[1]]
        others = Texts(title.distinct, rng.integers(0, len(title.distinct), len(rows)).astype(np.int32))
        chosen = Texts(query.distinct, query.index[rows])
        matched = texts.features(chosen, Texts(title.distinct, title.index[rows]))
        yield matched, grade[rows], texts.features(chosen, others)
