"""Shown items, or candidates, of whole splits as flat columns in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.baselines.grades import TextGrades, known_or_predicted
from prectr_torchrec.baselines.samples import Samples, TextPairs, candidate_requests, per_candidate
from prectr_torchrec.data.column_kinds import UNLABELLED
from prectr_torchrec.data.columns import CLICK_KNOWN
from prectr_torchrec.evaluation.predictions import Rows

REQUEST = ("request_id", "timestamp", "user_id", "query_id", "group_id")
CANDIDATE = tuple(f"candidate_{name}" for name in ("item_id", "position", "click", "relevance", "predicted"))

Array = NDArray[Any]


@dataclass(frozen=True)
class Impressions:
    """n candidates in the order of the samples.

    Attributes:
        values: `REQUEST`, `CANDIDATE`, when clicks are known where that may be late, and the item attributes as in the samples;
            `grade`, and whether it is `predicted`; `title`, an index into the titles; `split`, an index into the splits that were
            read. (n,) each.
        titles: the distinct titles.
    """

    values: dict[str, Array]
    titles: list[str]

    def __len__(self) -> int:
        return len(self.values["candidate_item_id"])

    def take(self, rows: Array) -> Impressions:
        """Some of them, by a mask or by index; with the same titles."""
        return replace(self, values={name: column[rows] for name, column in self.values.items()})


def read_impressions(
    samples: Samples, splits: Sequence[str], texts: TextPairs, grades: TextGrades, *, hide_grades: bool = False
) -> Impressions:
    """Reads splits, one after the other.

    Args:
        texts: of the folder that was trained on.
        grades: what predicts a grade where there is none.
        hide_grades: `grade` is predicted everywhere; `candidate_relevance` stays.
    """
    late = (f"candidate_{CLICK_KNOWN}",) if samples.data.late else ()
    candidate = (*CANDIDATE, *late, *(f"candidate_{name}" for name in samples.data.ids_of("items")))
    places: dict[str, int] = {}
    parts: list[dict[str, Array]] = []
    for number, split in enumerate(splits):
        for columns in samples.columns(split, (*REQUEST, *candidate, "query", "candidate_title")):
            title = columns.texts["candidate_title"]
            place = np.array([places.setdefault(text, len(places)) for text in title.distinct], dtype=np.int64)
            by_text = grades.predict(texts.features(per_candidate(columns, "query"), title))
            relevance, predicted = columns.values["candidate_relevance"], columns.values["candidate_predicted"]
            visible = by_text if hide_grades else known_or_predicted(relevance, predicted, by_text, samples.data.levels)
            row = candidate_requests(columns)
            parts.append(
                {name: columns.values[name] for name in candidate}
                | {name: columns.values[name][row] for name in REQUEST}
                | {
                    "grade": visible,
                    "predicted": np.isnan(relevance) | hide_grades,
                    "title": place[title.index],
                    "split": np.full(len(row), number),
                }
            )
    return Impressions({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, list(places))


def to_rows(values: dict[str, Array], logit: Array, logged_logit: Array) -> Rows:
    """Scored candidates as `prectr evaluate` writes them.

    Args:
        values: request_id, user_id, candidate_item_id, candidate_relevance and candidate_click, (n,) each.
        logit: (n,) at the reference position.
        logged_logit: (n,) at the logged position.
    """
    click = values["candidate_click"]
    return {
        "request_id": values["request_id"],
        "item_id": values["candidate_item_id"],
        "user_id": values["user_id"],
        "click_probability": np.exp(-np.logaddexp(0, -logit)).astype(np.float32),
        "logged_logit": logged_logit.astype(np.float32),
        "relevance": values["candidate_relevance"],
        "click": np.where(click == UNLABELLED, np.nan, click).astype(np.float32),
    }
