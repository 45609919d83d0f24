"""What rankers read of a batch: looked up, by name, and packed as requests, candidates, sequences and texts.

Letters: R requests, C candidates, L events, K relevance levels, T texts, W tokens, D the width of a feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Whose = Literal["own", "peers"]


class Events(NamedTuple):
    """Past events of R requests, left-aligned, oldest first; what lies beyond the lengths is never read."""

    features: dict[str, Tensor]
    """By name: looked-up ids (R, L, D), and of what happened `level` (R, L) int64 in 0..K with 0 for none, `click` (R, L) 0 or 1,
    `position` (R, L) int64 from 1 with 0 for not logged, `age` (R, L) seconds, `predicted` (R, L, K) probabilities of the levels
    where none is known, else zero; (R, 0, K) where nothing is predicted. The log's own vectors of items, (R, L, width), are NaN
    where they are missing."""
    lengths: Tensor
    """(R,) int64, real events."""

    def compared_by(self, names: Iterable[str]) -> ComparedEvents:
        """With the named looked-up features side by side."""
        return ComparedEvents(self, torch.cat([self.features[name] for name in names], dim=2))

    def by_level(self, table: Tensor) -> Tensor:
        """(R, L, ...) rows of a table (K + 1, ...) by level, index 0 for none; a predicted level is the mean of its rows."""
        return _by_level(self.features["level"], self.features.get("predicted"), table)


class ComparedEvents(NamedTuple):
    """Past events, and the vectors that candidates are compared with them by."""

    events: Events
    """What happened."""
    vectors: Tensor
    """(R, L, D) float, what each event was about."""


class Texts(NamedTuple):
    """The distinct texts of a batch, and who has which of them."""

    tokens: Tensor
    """(T, W) int64 token ids, 0: padding."""
    rows: Tensor
    """(R,), (C,) or (R, L) int64 into the texts."""
    encoded: Tensor | None = None
    """(T, ...) what the text encoder makes of each, where the caller kept it."""


class CandidateSlots:
    """Moves candidate rows (C, ...) into per-request slots (R, P, ...) and back.

    P is the number of real candidates of the request that has most of them, or more. Candidate c of request r, the p-th of its
    real ones, stands in slot (r, p); padding stands in none.

    Args:
        candidate_request: (C,) int64, ascending over real candidates; padding rows last.
        candidate_weight: (C,) float32, zero for padding.
        num_requests: R.
        most_candidates: P; None: it is counted, and on a GPU the host waits for the answer.

    Example::

        request = torch.tensor([0, 0, 1])  # two candidates of the first request, one of the second
        slots = CandidateSlots(request, torch.ones(3), num_requests=2)
        rows = torch.randn(3, 4)
        assert slots.scatter(rows).shape == (2, 2, 4) and slots.scatter(rows)[1, 1].eq(0).all()
        assert slots.gather(slots.scatter(rows)).equal(rows)
    """

    def __init__(
        self, candidate_request: Tensor, candidate_weight: Tensor, num_requests: int, most_candidates: int | None = None
    ) -> None:
        real = candidate_weight > 0
        counts = torch.zeros(num_requests, dtype=torch.long, device=real.device).index_add_(0, candidate_request, real.long())
        starts = counts.cumsum(0) - counts
        slot = torch.arange(real.shape[0], device=real.device) - starts[candidate_request]
        self.shape = (num_requests, max(int(counts.max()) if most_candidates is None else most_candidates, 1))
        size = self.shape[0] * self.shape[1]
        self.index = torch.where(real, candidate_request * self.shape[1] + slot, size)  # padding goes to one spare row

    def scatter(self, rows: Tensor) -> Tensor:
        """(C, D) -> (R, P, D), zero where a request has fewer candidates."""
        R, P = self.shape
        padded = rows.new_zeros(R * P + 1, rows.shape[1]).index_copy(0, self.index, rows)
        return padded[:-1].view(R, P, -1)

    def gather(self, slots: Tensor) -> Tensor:
        """(R, P, D) -> (C, D); padding rows get the last slot's value, to be weighted by zero."""
        return slots.flatten(0, 1)[self.index.clamp(max=self.shape[0] * self.shape[1] - 1)]


@dataclass(frozen=True)
class Inputs:
    """What a ranker reads. A number, a vector and an embedded id are all `(rows, width)`.

    Padding requests and candidates have weight 0. What a model does not read may be missing.

    Attributes:
        request: (R, D) by name, the same for all candidates of a request: looked-up ids; the counts `user_events`,
            `user_query_events`, `query_events` (R, 1); the counters `user_*`, `query_*`, `group_*` of `shown`, `clicked`,
            `examined` (R, K + 1), the first without a grade.
        candidate: (C, D) by name: looked-up ids and bags; the counters `shown`, `clicked`, `examined` of the item (C, 1);
            `position` (C,) int64 from 1, 0: hold at the reference; `relevance` (C,) the grade, NaN where there is none; `level`
            (C,) int64 its class in 1..K, 0: none; `predicted` (C, K) as of `Events`; `of_graded_request` (C,) bool, where
            `of_graded_requests` is to say something else. The log's own numbers, (C, 1), and vectors, (C, width), those of
            `request` (R, ...), are NaN where they are missing.
        sequences: past events by name: `history`, `peer`.
        texts: by name: `query` (R,), `title` (C,), `history_title` (R, L).
        request_weight: (R,) 1, or 0 for padding.
        candidate_request: (C,) int64, ascending: the request of each candidate.
        candidate_weight: (C,) 1, or 0 for padding.
        most_candidates: as of `CandidateSlots`.

    Example::

        inputs = Inputs(  # R = 2 requests with 2 candidates and 1
            request={"user_id": torch.randn(2, 8)},
            candidate={"item_id": torch.randn(3, 8)},
            sequences={},
            texts={"query": Texts(torch.tensor([[7, 8], [9, 0]]), rows=torch.tensor([0, 1]))},
            request_weight=torch.ones(2),
            candidate_request=torch.tensor([0, 0, 1]),
            candidate_weight=torch.ones(3),
        )
        assert inputs.rows(["item_id", "user_id"]).shape == (3, 16)
    """

    request: Mapping[str, Tensor]
    candidate: Mapping[str, Tensor]
    sequences: Mapping[str, Events]
    texts: Mapping[str, Texts]
    request_weight: Tensor
    candidate_request: Tensor
    candidate_weight: Tensor
    most_candidates: int | None = None

    @cached_property
    def slots(self) -> CandidateSlots:
        """Where the candidates stand within their requests."""
        num_requests = self.request_weight.shape[0]
        return CandidateSlots(self.candidate_request, self.candidate_weight, num_requests, self.most_candidates)

    def rows(self, names: Iterable[str]) -> Tensor:
        """(C, sum of D) the named features of each candidate: its own, else those of its request."""
        found = [self.candidate[n] if n in self.candidate else self.request[n][self.candidate_request] for n in names]
        return torch.cat(found, dim=1) if found else self.candidate_weight.new_zeros(self.candidate_weight.shape[0], 0)

    def rows_of_requests(self, names: Iterable[str]) -> Tensor:
        """(R, sum of D) the named features of each request."""
        return torch.cat([self.request[name] for name in names], dim=1)

    def counts(self) -> Tensor:
        """(R, 4) past events of the user, of the user under the query, of others under it, and how many of these are known as
        events; zero where nothing is said of them."""
        zero = torch.zeros_like(self.request_weight).unsqueeze(1)
        counted = [self.request.get(name, zero) for name in ("user_events", "user_query_events", "query_events")]
        peers = self.sequences.get("peer")
        return torch.cat([*counted, zero if peers is None else peers.lengths.unsqueeze(1).float()], dim=1)

    def counters(self, who: str) -> tuple[Tensor, Tensor, Tensor]:
        """Shown, clicked and examined counters of `user`, `query`, `group` (R, K + 1) or `item` (C, 1); those that were shown
        count as examined where nothing else is known."""
        columns, prefix = self._counted(who)
        shown = columns[f"{prefix}shown"]
        return shown, columns[f"{prefix}clicked"], columns.get(f"{prefix}examined", shown)

    def counter(self, who: str, what: str) -> Tensor:
        """One of these counters, (R, K + 1) or (C, 1): `clicked`, or that of a label, such as `orders`."""
        columns, prefix = self._counted(who)
        return columns[f"{prefix}{what}"]

    def _counted(self, who: str) -> tuple[Mapping[str, Tensor], str]:
        """Where the counters of `user`, `query`, `group` or `item` are, and what their names begin with."""
        return (self.candidate, "") if who == "item" else (self.request, f"{who}_")

    @cached_property
    def graded(self) -> Tensor:
        """(C,) bool: the candidate has a grade, given or predicted."""
        return (self.candidate["level"] > 0) | (self.candidate["predicted"] > 0).any(1)

    def of_graded_requests(self) -> Tensor:
        """(C,) bool: the candidate, or another one of its request, has a grade."""
        if "of_graded_request" in self.candidate:
            return self.candidate["of_graded_request"]
        graded = torch.zeros_like(self.request_weight)
        graded.index_add_(0, self.candidate_request, self.graded * self.candidate_weight)
        return (graded > 0)[self.candidate_request]

    def without_grades(self, rows: Tensor | None = None) -> Inputs:
        """As if candidates were of requests without any grade, given or predicted, as most are when a ranker serves; the past
        keeps its grades.

        Args:
            rows: (C,) bool, the candidates that see it so; None: all.
        """
        level = self.candidate["level"]
        hidden = torch.ones_like(level, dtype=torch.bool) if rows is None else rows
        ungraded = {
            "relevance": self.candidate["relevance"].masked_fill(hidden, torch.nan),
            "level": level.masked_fill(hidden, 0),
            "predicted": self.candidate["predicted"].masked_fill(hidden.unsqueeze(1), 0.0),
            "of_graded_request": self.of_graded_requests() & ~hidden,
        }
        return replace(self, candidate={**self.candidate, **ungraded})

    def without_past(self, whose: Whose) -> Inputs:
        """As if the user, or the other users under the query and its group, had no past.

        Counts, counters and lengths of that past are zero; all other fields stay the same tensors. Ids stay: what a table has
        learned of a user or a query is no part of it. The item's counters stay too.
        """
        past, sequence = _PAST[whose]
        request = {n: torch.zeros_like(v) if n in past else v for n, v in self.request.items()}
        sequences = {
            n: e._replace(lengths=torch.zeros_like(e.lengths)) if n == sequence else e for n, e in self.sequences.items()
        }
        return replace(self, request=request, sequences=sequences)


class Label(NamedTuple):
    """What is known of each candidate after it was shown."""

    value: Tensor
    """(C,) float, such as 0 or 1."""
    weight: Tensor
    """(C,) float, 1, or 0: no label, or padding."""
    sample_weight: Tensor | None = None
    """(C,) float, what each candidate counts in training, 1 on average; None: 1 each. Measures do not look at it."""


class Widths(NamedTuple):
    """Widths of the looked-up features by name, as `Inputs` has them."""

    request: dict[str, int]
    """Of (R, D) features."""
    candidate: dict[str, int]
    """Of (C, D) features."""
    sequences: dict[str, dict[str, int]]
    """Of (R, L, D) features, by sequence."""

    def compared(self, name: str) -> int:
        """Of what an event's feature of this name is compared with: the candidate's feature, else its request's."""
        return self.candidate[name] if name in self.candidate else self.request[name]


_COUNTED = ("shown", "clicked", "examined")
_PAST = {
    "own": ({"user_events", "user_query_events", *(f"user_{what}" for what in _COUNTED)}, "history"),
    "peers": ({"query_events", *(f"{who}_{what}" for who in ("query", "group") for what in _COUNTED)}, "peer"),
}


# What looks at its inputs stands in functions of their own, which torch.fx leaves whole.
@torch.fx.wrap
def _by_level(level: Tensor, predicted: Tensor | None, table: Tensor) -> Tensor:
    flat = table.reshape(table.shape[0], -1)
    rows = nn.functional.embedding(level, flat)
    if predicted is not None and predicted.shape[1]:
        rows = torch.where((predicted > 0).any(2, keepdim=True), predicted @ flat[1:], rows)
    return rows.view(*level.shape, *table.shape[1:])
