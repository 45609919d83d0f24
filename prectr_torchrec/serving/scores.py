"""The scores of requests, as they are handed out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.config.score import CLICK_ALONE, Worth, multiplied, read_score
from prectr_torchrec.evaluation.explanation import rows_of, weigh
from prectr_torchrec.evaluation.label_columns import Worths, each_worth, expected_worth
from prectr_torchrec.evaluation.predictions import LEVELS
from prectr_torchrec.serving.request import GROUPS, Request
from prectr_torchrec.serving.worth import FIELD

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """The scores of one request, in the order of its candidates."""

    request_id: Any
    item_id: NDArray[Any]
    """(n,). Ids are as the request has them; of rows that `schema` made, ours."""
    click_probability: Floats
    """(n,), the position held at its reference; what ranks, where `worth` says nothing else."""
    relevance_probabilities: Floats | None
    """(n, K), the relevance tower's own word, before any known grade; None of a ranker without one."""
    label_probabilities: Mapping[str, Floats] = field(default_factory=dict)
    """(n,) each, of the labels beside the click."""
    worth: Mapping[str, Worth] = field(default_factory=lambda: CLICK_ALONE)
    """What labels are worth."""
    numbers: Mapping[str, Floats] = field(default_factory=dict)
    """(n,) each, the numbers of the candidates that `worth` multiplies by, NaN where they are missing."""
    explanation: dict[str, Any] | None = None
    """Where asked for: `explanation.take_apart`'s plain values."""

    @property
    def score(self) -> Floats:
        """(n,) what ranks: the expected worth, which is the click probability where nothing else is worth anything."""
        return expected_worth({"click": self.click_probability, **self.label_probabilities}, self.worths)

    @property
    def worths(self) -> Worths:
        """What labels are worth, to all candidates or, (n,), to each."""
        return each_worth(self.worth, self.numbers)

    @property
    def by_name(self) -> dict[str, Floats]:
        """(n,) or (n, K) what there is of each candidate: probabilities, and a score where it may be another thing."""
        found = {"click_probability": self.click_probability}
        found |= {f"{label}_probability": values for label, values in self.label_probabilities.items()}
        if self.ranks_by_worth:
            found["score"] = self.score
        return found | ({} if self.relevance_probabilities is None else {LEVELS: self.relevance_probabilities})

    @property
    def ranks_by_worth(self) -> bool:
        """Whether the score may be another thing than the click probability."""
        return bool(self.label_probabilities or multiplied(self.worth))

    def ranking(self) -> NDArray[np.int64]:
        """(n,) the candidates' places in the request, best first."""
        return np.argsort(-self.score, kind="stable")

    def finite(self) -> bool:
        """Whether all of them are numbers."""
        return all(bool(np.isfinite(values).all()) for values in self.by_name.values())


def as_sent(request: Request, sample: pa.Table, scores: Scores) -> Scores:
    """The scores of a request with its own ids in place of ours, and by its own `score`; `sample` is what `schema` made of it."""
    items = _sent(request, GROUPS["candidate"], "item_id")
    try:
        item_id = np.array(items, np.int64 if all(type(item) is int for item in items) else object)
    except OverflowError:  # from 2**63 on
        item_id = np.array(items, object)
    request_id = scores.request_id if request.get("request_id") is None else request["request_id"]
    scores = replace(scores, request_id=request_id, item_id=item_id)
    own = request.get(FIELD) if scores.label_probabilities else None  # else a column may be called so
    if own is not None:
        worth = read_score(own)
        scores = replace(scores, worth=worth, numbers=numbers_of(sample, multiplied(worth).values()))
    if scores.explanation is None:
        return scores
    if own is not None:
        weigh(scores.explanation, scores.worth)
    sent: dict[str, dict[int, Any]] = {"item_id": {}, "query_id": {}}
    for family, key in GROUPS.items():
        for name, known in sent.items():
            if (column := f"{family}_{name}") in sample.column_names:
                known.update(zip(sample[column][0].as_py(), _sent(request, key, name), strict=True))
    for row in rows_of(scores.explanation):
        row.update({name: ids[row[name]] for name, ids in sent.items() if name in row})
    return scores


def numbers_of(samples: pa.Table, columns: Iterable[str]) -> dict[str, Floats]:
    """(n,) numbers of all candidates of some requests, by column; NaN where they are missing."""
    flat = {column: samples[f"candidate_{column}"].combine_chunks().flatten() for column in columns}
    return {column: values.to_numpy(zero_copy_only=False) for column, values in flat.items()}


def _sent(request: Request, key: str, name: str) -> list[Any]:
    """The ids of a list of the request, which is one of objects or an object of lists."""
    rows = request.get(key)
    if isinstance(rows, Mapping):
        length = max((len(column) for column in rows.values()), default=0)
        return list(rows.get(name, [None] * length))
    return [row.get(name) for row in rows or ()]


def to_table(requests: pa.Table, scores: Sequence[Scores], nothing: Scores) -> pa.Table:
    """A row for each candidate of the requests; `nothing`: scores of no candidate, which say what columns there are."""
    counts = [len(s.item_id) for s in scores]
    row = np.repeat(np.arange(len(scores)), counts)
    none = pa.array(np.zeros(len(scores), np.int64))
    request_id = (requests["request_id"] if "request_id" in requests.column_names else none).take(pa.array(row))
    columns = {"request_id": request_id, "item_id": requests["candidate_item_id"].combine_chunks().flatten()}
    found = [of_one.by_name for of_one in (nothing, *scores)]
    for name in found[0]:
        values = np.concatenate([of_one[name] for of_one in found])
        columns[name] = pa.array(values) if values.ndim == 1 else _lists(values)
    return pa.table(columns)


def _lists(values: Floats) -> pa.Array:
    offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), pa.float32()))
