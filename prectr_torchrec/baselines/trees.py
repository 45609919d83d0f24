"""`trees`: LightGBM over the features of `tree_features.py` and `declared_features.py`. Needs the extra `trees`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from prectr_torchrec.baselines.boosting import Boosting, BoostingConfig, Part, join
from prectr_torchrec.baselines.declared_features import DeclaredFeatures
from prectr_torchrec.baselines.grades import TextGrades
from prectr_torchrec.baselines.impressions import to_rows
from prectr_torchrec.baselines.samples import Samples, candidate_requests, open_texts
from prectr_torchrec.baselines.tree_features import CandidateFeatures, UsualRates, frequent, stack
from prectr_torchrec.data.column_kinds import UNLABELLED
from prectr_torchrec.data.prepare.examination import position_weights
from prectr_torchrec.evaluation.predictions import Rows

_HELD_OUT = 0.1
"""Share of the training rows, the latest, that choose the number of trees where there is no validation split."""


class TreesConfig(BoostingConfig):
    """Settings of the boosted trees, and of what they read."""

    hidden_share: float = Field(0.2, ge=0, le=1)
    """Share of the training candidates whose grade is hidden, to learn what to do without one."""
    categories: int = Field(1000, ge=0)
    """Most frequent values kept of each attribute."""
    bag: int = Field(50, ge=0)
    """Most frequent ids of each list of ids, each of which is a feature."""


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
        if not len(train):
            raise ValueError(f"{samples.folder}: no candidate of train has a click label to learn from")
        validation = self._read(samples, "validation") if samples.has("validation") else None
        fitted, choosing = (train, validation) if validation else train.split(_HELD_OUT)
        self.boosting = Boosting(
            fitted,
            choosing,
            names=self.names,
            categories=list(self._features.categories),
            examination=position_weights(samples.examination),
            config=config,
            refit="validation" in splits or not validation,
        )

    def score(self, samples: Samples, split: str, *, hide_grades: bool = False) -> Iterator[Rows]:
        """The candidates of a split, as `prectr evaluate` scores them, a row group at a time."""
        for columns in samples.columns(split, self._features.columns(samples.data)):
            hidden = np.full(len(columns.values["candidate_click"]), hide_grades)
            logit, logged = self.boosting.logits(stack(self._features(columns, hidden)))
            request = candidate_requests(columns)
            ids = {name: columns.values[name][request] for name in ("request_id", "user_id")}
            yield to_rows(columns.values | ids, logit, logged)

    def _read(self, samples: Samples, split: str, hidden_share: float = 0.0) -> Part:
        parts = []
        rng = np.random.default_rng(self._config.seed)
        for columns in samples.columns(split, self._features.columns(samples.data)):
            features = self._features(columns, rng.random(len(columns.values["candidate_click"])) < hidden_share)
            self.names = list(features)
            labelled = columns.values["candidate_click"] != UNLABELLED
            sizes = np.bincount(candidate_requests(columns)[labelled], minlength=columns.num_rows)
            parts.append(Part(stack(features)[labelled], columns.values["candidate_click"][labelled], sizes[sizes > 0]))
        return join(parts)


def _build_features(samples: Samples, config: TreesConfig) -> CandidateFeatures:
    """The features, with what the train split tells of categories and usual click rates."""
    texts = open_texts(samples, config)
    names, bags = CandidateFeatures.category_columns(samples.data), DeclaredFeatures.bag_columns(samples.data)
    values: dict[str, list[NDArray[np.int64]]] = {name: [] for name in (*names, *bags)}
    for columns in samples.columns("train", [*names, *bags]):
        for name in names:
            values[name].append(columns.values[name])
        for name in bags:
            values[name].append(columns.bags[name].values)
    categories = {name: frequent(values[name], config.categories) for name in names}
    declared = DeclaredFeatures(samples.data, {name: frequent(values[name], config.bag) for name in bags})
    grades = TextGrades.fit(samples, texts, config.seed)
    return CandidateFeatures(samples.data, texts, grades, UsualRates.count(samples), declared, categories)
