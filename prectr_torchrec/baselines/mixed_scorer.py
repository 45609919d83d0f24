"""The mixed-effects regression from samples to scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prectr_torchrec.baselines.grades import TextGrades
from prectr_torchrec.baselines.impressions import Impressions, read_impressions, to_rows
from prectr_torchrec.baselines.mixed import MixedConfig, MixedEffects, fit_mixed
from prectr_torchrec.baselines.samples import LABELLED, Samples, open_texts
from prectr_torchrec.baselines.user_posterior import UserPosterior
from prectr_torchrec.baselines.vocabulary import Vocabulary
from prectr_torchrec.data.column_kinds import UNLABELLED
from prectr_torchrec.data.columns import CLICK_KNOWN
from prectr_torchrec.evaluation.predictions import Rows
from prectr_torchrec.modules import LabelProbability
from prectr_torchrec.state.effects import EffectEvents, as_known


class MixedScorer:
    """A fitted regression, and the shown impressions that users are inferred from as of a request.

    Args:
        samples: prepared folder; its labelled splits are held in memory.
        splits: those that are trained on.
        config: how.

    Raises:
        ValueError: no candidate of these splits has a label.
    """

    def __init__(self, samples: Samples, splits: Sequence[str], config: MixedConfig) -> None:
        self._config, self._samples = config, samples
        self._texts = open_texts(samples, config)
        self._grades = TextGrades.fit(samples, self._texts, config.seed)
        there = [split for split in LABELLED if samples.has(split)]
        self._shown = read_impressions(samples, there, self._texts, self._grades)
        labelled = self._shown.take(_labelled(self._shown))
        train = labelled.take(np.isin(labelled.values["split"], [there.index(s) for s in splits if s in there]))
        if not len(train):
            raise ValueError(f"{samples.folder}: no candidate of {' and '.join(splits)} has a click label to learn from")
        self._vocabulary = Vocabulary.fit(train, samples.data, self._texts, config.word_share)
        pairs = self._vocabulary.encode(train)
        attributes, positions = tuple(samples.data.ids_of("items")), self._vocabulary.positions
        self.model = MixedEffects(self._vocabulary.occurrences(pairs), attributes, samples.data.levels.count, positions, config)
        fit_mixed(self.model, pairs, torch.from_numpy(train.values["candidate_click"].astype(np.float32)), config)

    def score(self, samples: Samples, split: str, *, hide_grades: bool = False) -> Iterator[Rows]:
        """The candidates of a split, as `prectr evaluate` scores them, all at once."""
        rows = read_impressions(samples, [split], self._texts, self._grades, hide_grades=hide_grades)
        pairs = self._vocabulary.encode(rows)
        logit, x, fitted = (part.double().numpy() for part in self.model.score(pairs))
        user = fitted if self._config.users == "rows" else self.posterior(samples, split).at(*_who_and_when(rows))
        logit = logit + (user * x).sum(axis=1)
        clicked = self.model.position(LabelProbability.from_logit(torch.from_numpy(logit)), pairs.position)
        yield to_rows(rows.values, logit, clicked.logit.detach().numpy())

    def posterior(self, samples: Samples, split: str) -> UserPosterior:
        """Users by what was shown to them in the folder that is trained on, and in the scored split where that is another one."""
        parts = [self._shown]
        if samples.folder.resolve() != self._samples.folder.resolve() and split in LABELLED:
            scored = read_impressions(samples, [split], self._texts, self._grades)
            others = ~np.isin(self._shown.values["request_id"], scored.values["request_id"])
            parts = [self._shown.take(others), scored]
        events, impressions = [], 0
        for part in map(self._events, parts):
            events.append(part._replace(impression=part.impression + impressions))
            impressions += int(part.impression.max(initial=-1)) + 1
        joined = EffectEvents(*map(np.concatenate, zip(*events, strict=True)))
        return UserPosterior(joined, self.model.user_variance.double().numpy())

    def _events(self, shown: Impressions) -> EffectEvents:
        """Those of known users."""
        known = f"candidate_{CLICK_KNOWN}"
        shown = shown.take((shown.values["user_id"] != 0) & (known in shown.values or _labelled(shown)))
        pairs = self._vocabulary.encode(shown)
        logit, x, _ = self.model.score(pairs)
        seen = self.model.position.examination(pairs.position).detach()
        user, time = _who_and_when(shown)
        events = as_known(time, shown.values["candidate_click"], shown.values.get(known))
        of = events.impression
        by_impression = (column.double().numpy() for column in (x, logit, seen))
        about: list[Any] = [user[of], events.time, *(column[of] for column in by_impression), of, events.click]
        return EffectEvents(*about)


def _who_and_when(rows: Impressions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return rows.values["user_id"], rows.values["timestamp"]


def _labelled(impressions: Impressions) -> NDArray[np.bool_]:
    return np.asarray(impressions.values["candidate_click"] != UNLABELLED)
