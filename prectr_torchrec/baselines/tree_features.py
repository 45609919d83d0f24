"""The columns of the boosted trees: what a model gets of a candidate, as hand-made numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from prectr_torchrec.baselines.declared_features import DeclaredFeatures, Features
from prectr_torchrec.baselines.grades import TextGrades, known_or_predicted
from prectr_torchrec.baselines.samples import Samples, TextPairs, candidate_requests, per_candidate
from prectr_torchrec.config.columns import IdColumn
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.reads import COUNTED
from prectr_torchrec.data.column_kinds import UNLABELLED
from prectr_torchrec.data.columns import declared_of
from prectr_torchrec.data.levels import grade_levels, unpack_levels
from prectr_torchrec.data.prepare.examination import position_weights, weights_at
from prectr_torchrec.data.reader.flat import Columns

_SMOOTHING = 5.0
"""Examined events that a rate starts with."""
_EVENT = ("item_id", "click", "position", "relevance")
_Past = Literal["history", "peer"]
_PASTS: tuple[_Past, ...] = ("history", "peer")


@dataclass(frozen=True)
class UsualRates:
    """How often what is looked at is clicked in the train split.

    Attributes:
        by_level: (K + 1,) click rates, index 0: without a grade.
        overall: of all levels.
        examination: of positions, as of `position_weights`.
        boundaries: of the levels.
    """

    by_level: NDArray[np.float64]
    overall: float
    examination: NDArray[np.float64]
    boundaries: list[float]

    @classmethod
    def count(cls, samples: Samples) -> UsualRates:
        """One pass over the train split."""
        levels, examination = samples.data.levels, position_weights(samples.examination)
        clicked, examined = np.zeros((2, levels.count + 1))
        for columns in samples.columns("train", ["candidate_click", "candidate_relevance", "candidate_position"]):
            labelled = columns.values["candidate_click"] != UNLABELLED
            level = grade_levels(columns.values["candidate_relevance"], levels.boundaries)[labelled]
            weight = weights_at(examination, columns.values["candidate_position"])[labelled]
            clicked += np.bincount(level, columns.values["candidate_click"][labelled], minlength=levels.count + 1)
            examined += np.bincount(level, weight, minlength=levels.count + 1)
        overall = float(clicked.sum() / max(examined.sum(), 1))
        by_level = (clicked + _SMOOTHING * overall) / (examined + _SMOOTHING)
        return cls(by_level, overall, examination, levels.boundaries)

    def surplus(self, columns: Columns, family: str) -> NDArray[np.float64]:
        """(events,) clicks over what is usual at the event's position and level."""
        level = grade_levels(columns.values[f"{family}_relevance"], self.boundaries)
        weight = weights_at(self.examination, columns.values[f"{family}_position"])
        return np.asarray(columns.values[f"{family}_click"] - weight * self.by_level[level], np.float64)


class CandidateFeatures:
    """Builds the features of a row group's candidates.

    Args:
        data: settings of the samples.
        texts: texts of the folder that is trained on.
        grades: what predicts a grade from the texts.
        usual: what clicks are held against.
        declared: of the columns that the log declares, but for ids.
        categories: column -> its known values, sorted; value k becomes category k, others are missing.
    """

    def __init__(
        self,
        data: DataConfig,
        texts: TextPairs,
        grades: TextGrades,
        usual: UsualRates,
        declared: DeclaredFeatures,
        categories: dict[str, NDArray[np.int64]],
    ) -> None:
        self._data, self._texts, self._grades, self._usual, self._declared = data, texts, grades, usual, declared
        self.categories = categories

    @staticmethod
    def category_columns(data: DataConfig) -> list[str]:
        """Sample columns that become categories."""
        ids = [column.name for column, _ in declared_of(data, IdColumn)]
        return [*sorted(ids, key=lambda name: not name.startswith("candidate_")), "group_id"]

    @staticmethod
    def columns(data: DataConfig) -> list[str]:
        """The sample columns that are read."""
        names = [f"{who}_{what}" for who in ("user", "query", "group") for what in COUNTED]
        names += [f"{family}_{name}" for family in _PASTS for name in (*_EVENT, *data.ids_of_past(family))]
        names += [f"candidate_{name}" for name in ("item_id", "title", "position", "click", "relevance", "predicted", *COUNTED)]
        request = ["request_id", "user_id", "query_id", "query", "user_events", "user_query_events", "query_events"]
        declared = [*DeclaredFeatures.columns(data), *CandidateFeatures.category_columns(data)]
        return [*request, "history_query_id", "history_title", *names, *declared]

    def __call__(self, columns: Columns, hidden: NDArray[np.bool_]) -> Features:
        """The features of all candidates.

        Args:
            hidden: (candidates,) whose grades and predicted levels are hidden.

        Returns:
            (candidates,) each; `position` first, 1 where none was logged.
        """
        request = candidate_requests(columns)
        position = columns.values["candidate_position"].astype(np.float32)
        match = self._texts.features(per_candidate(columns, "query"), columns.texts["candidate_title"])
        features: Features = {"position": np.maximum(position, 1)}
        features |= self._relevance(columns, match, hidden)
        features |= {f"match_{number}": column for number, column in enumerate(match.T)}
        features |= self._counters(columns, request, features["level"].astype(np.int64))
        features |= self._item(columns)
        for family in _PASTS:
            features |= self._same(columns, family, request)
        features["title_taste"] = self._title_taste(columns, request)
        features |= self._declared(columns, request)
        features |= {name: self._category(columns, name, request) for name in self.categories}
        return features

    def _relevance(self, columns: Columns, match: NDArray[np.float32], hidden: NDArray[np.bool_]) -> Features:
        """The visible grade, else the predicted one, and which of them it is."""
        visible = np.where(hidden, np.float32(np.nan), columns.values["candidate_relevance"])
        packed = np.where(hidden, 0, columns.values["candidate_predicted"])
        by_text = self._grades.predict(match)
        grade = known_or_predicted(visible, packed, by_text, self._data.levels)
        predicted = unpack_levels(packed, self._data.levels.count).T
        return {
            "grade": grade,
            "level": grade_levels(grade, self._data.levels.boundaries).astype(np.float32),
            "graded": (~np.isnan(visible)).astype(np.float32),
            "text_grade": by_text,
            **{f"predicted_{number}": column for number, column in enumerate(predicted, 1)},
        }

    def _counters(self, columns: Columns, request: NDArray[np.int64], level: NDArray[np.int64]) -> Features:
        """By level, and at the candidate's own level, of the user, of others under the query and under its group."""
        events = ("user_events", "user_query_events", "query_events")
        features = {name: np.log1p(columns.values[name][request]).astype(np.float32) for name in events}
        for who in ("user", "query", "group"):
            shown, clicked, examined = (columns.values[f"{who}_{what}"] for what in COUNTED)  # (R, K + 1)
            rates = _smoothed(clicked, examined, self._usual.by_level)
            for number in range(shown.shape[1]):
                features[f"{who}_shown_{number}"] = np.log1p(shown[:, number])[request]
                features[f"{who}_rate_{number}"] = rates[:, number][request]
            features[f"{who}_examined"] = np.log1p(examined.sum(axis=1))[request]
            features[f"{who}_rate"] = _smoothed(clicked.sum(axis=1), examined.sum(axis=1), self._usual.overall)[request]
            features[f"{who}_shown_own"] = np.log1p(shown[request, level])
            features[f"{who}_rate_own"] = rates[request, level]
        return features

    def _item(self, columns: Columns) -> Features:
        shown, clicked, examined = (columns.values[f"candidate_{what}"] for what in COUNTED)
        logs = {f"item_{what}": np.log1p(columns.values[f"candidate_{what}"]) for what in COUNTED}
        rates = {
            what: _smoothed(clicked, events, self._usual.overall) for what, events in (("shown", shown), ("examined", examined))
        }
        return {**logs, **{f"item_rate_{what}": rate for what, rate in rates.items()}}

    def _same(self, columns: Columns, family: _Past, request: NDArray[np.int64]) -> Features:
        """Past events with the candidate's item, or a value of its attributes: how many, and how many more clicks than usual."""
        candidate, event = _pairs(columns.offsets[family], request)
        surplus = self._usual.surplus(columns, family)
        features: Features = {}
        for name in ("item_id", *self._data.ids_of_past(family)):
            value = columns.values[f"candidate_{name}"][candidate]
            same = (value == columns.values[f"{family}_{name}"][event]) & (value != 0)
            counts = np.bincount(candidate[same], minlength=len(request))
            gained = np.bincount(candidate[same], surplus[event[same]], minlength=len(request))
            features[f"{family}_{name}_shown"] = counts.astype(np.float32)
            features[f"{family}_{name}_surplus"] = gained.astype(np.float32)
        return features

    def _title_taste(self, columns: Columns, request: NDArray[np.int64]) -> NDArray[np.float32]:
        """How much more than usual the user clicked titles with the candidate's words, in inverse document frequency."""
        surplus = self._usual.surplus(columns, "history")
        events = self._bags(columns, "history_title").multiply(surplus[:, None]).tocsr()
        offsets = columns.offsets["history"]
        rows = np.repeat(np.arange(columns.num_rows), np.diff(offsets))
        by_request = csr_matrix((np.ones(len(rows)), (rows, np.arange(len(rows)))), (columns.num_rows, len(rows))) @ events
        scores = self._bags(columns, "candidate_title").multiply(by_request[request]).sum(axis=1)
        return np.asarray(scores, dtype=np.float32).ravel()

    def _bags(self, columns: Columns, name: str) -> csr_matrix:
        """(events, stems) rows of unit length."""
        titles = columns.texts[name]
        stems = self._texts.title_stems(titles.distinct)
        idf = self._texts.match.idf.numpy()
        title, place = np.nonzero(stems)
        stem = stems[title, place]
        length = np.sqrt(np.bincount(title, idf[stem] ** 2, minlength=len(titles.distinct)))
        weights = idf[stem] / np.maximum(length, 1e-6)[title]
        return csr_matrix((weights, (title, stem)), (len(titles.distinct), len(idf)))[titles.index]

    def _category(self, columns: Columns, name: str, request: NDArray[np.int64]) -> NDArray[np.float32]:
        known, values = self.categories[name], columns.values[name]
        values = values if name.startswith("candidate_") else values[request]
        place = np.minimum(np.searchsorted(known, values), max(len(known) - 1, 0))
        there = known[place] == values if len(known) else np.zeros(len(values), bool)
        return np.where(there, place, np.nan).astype(np.float32)


def _smoothed(
    clicked: NDArray[np.float32], events: NDArray[np.float32], start: float | NDArray[np.float64]
) -> NDArray[np.float32]:
    return ((clicked + _SMOOTHING * start) / (events + _SMOOTHING)).astype(np.float32)


def stack(features: Features) -> NDArray[np.float32]:
    """(n, features) in their order."""
    return np.stack(list(features.values()), axis=1)


def frequent(values: Sequence[NDArray[np.int64]], most: int) -> NDArray[np.int64]:
    """The `most` most frequent values but 0, sorted."""
    distinct, counts = np.unique(np.concatenate(values), return_counts=True)
    order = np.argsort(np.where(distinct == 0, 0, -counts), kind="stable")[:most]
    return np.sort(distinct[order][distinct[order] != 0])


def _pairs(offsets: NDArray[np.int64], request: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every pair of a candidate and an event of its request: candidate and event, one row a pair."""
    lengths = np.diff(offsets)[request]
    candidate = np.repeat(np.arange(len(request)), lengths)
    ends = np.cumsum(lengths)
    event = np.arange(len(candidate)) - np.repeat(ends - lengths, lengths) + np.repeat(offsets[request], lengths)
    return candidate, event
