"""`trees`: LightGBM on the log loss of clicks, over the features of `features.py`. Needs the extra `trees`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from prectr_torchrec.baselines.grades import TextGrades
from prectr_torchrec.baselines.impressions import to_rows
from prectr_torchrec.baselines.samples import BaselineConfig, Samples, candidate_requests, open_texts
from prectr_torchrec.baselines.tree_features import CandidateFeatures, UsualRates, frequent, stack
from prectr_torchrec.data.column_kinds import UNLABELLED
from prectr_torchrec.evaluation.predictions import Rows

REFERENCE = 1
"""The position that candidates are ranked at."""
_HELD_OUT = 0.1
"""Share of the training rows, the latest, that choose the number of trees where there is no validation split."""

Part = tuple[NDArray[np.float32], NDArray[np.int8]]
"""(n, features) and (n,) clicks of the candidates that have a label."""


class TreesConfig(BaselineConfig):
    """Settings of the boosted trees."""

    rounds: int = Field(2000, ge=1)
    """Trees at most."""
    patience: int = Field(50, ge=1)
    """Trees after which fitting stops where the validation loss has not improved."""
    learning_rate: float = Field(0.05, gt=0)
    num_leaves: int = Field(31, ge=2)
    min_data_in_leaf: int = Field(100, ge=1)
    feature_fraction: float = Field(0.5, gt=0, le=1)
    """Share of the features that each tree draws."""
    bagging_fraction: float = Field(0.8, gt=0, le=1)
    """Share of the rows that each tree draws."""
    hidden_share: float = Field(0.2, ge=0, le=1)
    """Share of the training candidates whose grade is hidden, to learn what to do without one."""
    categories: int = Field(1000, ge=0)
    """Most frequent values kept of each attribute."""


class TreesScorer:
    """Fitted trees.

    Their number is chosen by the validation split, or by the latest tenth of the training rows, which are then trained on too.

    Args:
        samples: prepared folder; the features of what is trained on are held in memory.
        splits: those that are trained on.
        config: how.

    Raises:
        ValueError: no candidate of these splits has a label.
    """

    def __init__(self, samples: Samples, splits: Sequence[str], config: TreesConfig) -> None:
        self._config = config
        self._features = _build_features(samples, config)
        self.names: list[str] = []
        """Of the features."""
        train = self._read(samples, "train", config.hidden_share)
        if not len(train[1]):
            raise ValueError(f"{samples.folder}: no candidate of train has a click label to learn from")
        validation = self._read(samples, "validation") if samples.has("validation") else (train[0][:0], train[1][:0])
        validated = len(validation[1]) > 0
        fitted, choosing = (train, validation) if validated else _hold_out(train)
        self.booster = self._fit(fitted, config.rounds, choosing)
        if "validation" in splits or not validated:
            joined = np.concatenate([fitted[0], choosing[0]]), np.concatenate([fitted[1], choosing[1]])
            self.booster = self._fit(joined, self.booster.best_iteration)

    def score(self, samples: Samples, split: str, *, hide_grades: bool = False) -> Iterator[Rows]:
        """The candidates of a split, as `prectr evaluate` scores them, a row group at a time."""
        for columns in samples.columns(split, self._features.columns(samples.data)):
            hidden = np.full(len(columns.values["candidate_click"]), hide_grades)
            matrix = stack(self._features(columns, hidden))
            logged = self._predict(matrix)
            matrix[:, self.names.index("position")] = REFERENCE
            request = candidate_requests(columns)
            ids = {name: columns.values[name][request] for name in ("request_id", "user_id")}
            yield to_rows(columns.values | ids, self._predict(matrix), logged)

    def _predict(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(self.booster.predict(matrix, raw_score=True), dtype=np.float64)

    def _read(self, samples: Samples, split: str, hidden_share: float = 0.0) -> Part:
        matrices, labels = [], []
        rng = np.random.default_rng(self._config.seed)
        for columns in samples.columns(split, self._features.columns(samples.data)):
            features = self._features(columns, rng.random(len(columns.values["candidate_click"])) < hidden_share)
            self.names = list(features)
            labelled = columns.values["candidate_click"] != UNLABELLED
            matrices.append(stack(features)[labelled])
            labels.append(columns.values["candidate_click"][labelled])
        return np.concatenate(matrices), np.concatenate(labels)

    def _fit(self, part: Part, rounds: int, choosing: Part | None = None) -> lightgbm.Booster:
        config = self._config
        parameters: dict[str, Any] = {
            "objective": "binary",
            "metric": "binary_logloss",
            "learning_rate": config.learning_rate,
            "num_leaves": config.num_leaves,
            "min_data_in_leaf": config.min_data_in_leaf,
            "feature_fraction": config.feature_fraction,
            "bagging_fraction": config.bagging_fraction,
            "bagging_freq": 1,
            "seed": config.seed,
            "deterministic": True,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(part[0], part[1], feature_name=self.names, categorical_feature=list(self._features.categories))
        if choosing is None:
            return lightgbm.train(parameters, data, rounds)
        stopping = lightgbm.early_stopping(config.patience, verbose=False)
        held_out = lightgbm.Dataset(choosing[0], choosing[1], reference=data)
        return lightgbm.train(parameters, data, rounds, valid_sets=[held_out], callbacks=[stopping])


def _build_features(samples: Samples, config: TreesConfig) -> CandidateFeatures:
    """The features, with what the train split tells of categories and usual click rates."""
    texts = open_texts(samples, config)
    names = CandidateFeatures.category_columns(samples.data)
    values: dict[str, list[NDArray[np.int64]]] = {name: [] for name in names}
    for columns in samples.columns("train", names):
        for name in names:
            values[name].append(columns.values[name])
    categories = {name: frequent(values[name], config.categories) for name in names}
    grades = TextGrades.fit(samples, texts, config.seed)
    return CandidateFeatures(samples.data, texts, grades, UsualRates.count(samples), categories)


def _hold_out(train: Part) -> tuple[Part, Part]:
    """All but the latest rows, and these."""
    cut = len(train[1]) - max(int(len(train[1]) * _HELD_OUT), 1)
    return (train[0][:cut], train[1][:cut]), (train[0][cut:], train[1][cut:])
