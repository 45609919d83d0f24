"""What the towers read of a batch, and its looked-up embeddings row by row."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cached_property
from types import SimpleNamespace
from typing import Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torchrec import JaggedTensor


class SearchInputs(Protocol):
    """What PRECTR reads of a batch: R requests, C candidates, K levels, L and M events; shapes as in the comments."""

    request_weight: Tensor  # (R,) 0 for padding
    user_events: Tensor  # (R,)
    user_query_events: Tensor  # (R,)
    query_events: Tensor  # (R,)
    user_shown: Tensor  # (R, K + 1)
    user_clicked: Tensor  # (R, K + 1)
    user_examined: Tensor  # (R, K + 1)
    query_shown: Tensor  # (R, K + 1)
    query_clicked: Tensor  # (R, K + 1)
    query_examined: Tensor  # (R, K + 1)
    group_shown: Tensor  # (R, K + 1)
    group_clicked: Tensor  # (R, K + 1)
    group_examined: Tensor  # (R, K + 1)
    history_lengths: Tensor  # (R,)
    history_level: Tensor  # (R, L)
    history_click: Tensor  # (R, L)
    history_position: Tensor  # (R, L)
    history_age: Tensor  # (R, L)
    history_predicted: Tensor  # (R, L, K) or (R, 0, K)
    history_title_tokens: Tensor  # (T', W)
    history_title_index: Tensor  # (R, L)
    peer_lengths: Tensor  # (R,)
    peer_level: Tensor  # (R, M)
    peer_click: Tensor  # (R, M)
    peer_position: Tensor  # (R, M)
    peer_age: Tensor  # (R, M)
    peer_predicted: Tensor  # (R, M, K) or (R, 0, K)
    candidate_request: Tensor  # (C,)
    candidate_weight: Tensor  # (C,) 0 for padding
    position: Tensor  # (C,) 0: hold at the reference
    relevance: Tensor  # (C,) grade, NaN where missing
    level: Tensor  # (C,) 0: missing
    candidate_predicted: Tensor  # (C, K) zero where nothing is predicted
    item_shown: Tensor  # (C,)
    item_clicked: Tensor  # (C,)
    item_examined: Tensor  # (C,)
    query_tokens: Tensor  # (Q, W)
    title_tokens: Tensor  # (T, W)
    query_index: Tensor  # (R,)
    title_index: Tensor  # (C,)


def search_inputs(
    *,
    num_levels: int,
    candidate_request: Tensor,
    query_tokens: Tensor,
    query_index: Tensor,
    title_tokens: Tensor,
    title_index: Tensor,
    **given: Tensor,
) -> SearchInputs:
    """The inputs of PRECTR from a batch that is not ours: what is given, and for all else what stands for nothing.

    Nothing is padding, no position is logged, no grade known, every counter 0, nobody has a past; all that was shown counts as
    examined. Call it inside a module that torch.fx leaves whole, as TorchRec's pipelines do with all but the collections.

    Args:
        num_levels: K.
        candidate_request: (C,) int64, ascending.
        query_tokens, query_index: (Q, W) int64 distinct queries, and which of them each request has, (R,).
        title_tokens, title_index: (T, W) int64 distinct titles, and which of them each candidate has, (C,).
        given: other fields of `SearchInputs`. Of past events `*_lengths` and one field of width L or M will do.

    Raises:
        ValueError: a field is not one of `SearchInputs`, or events have lengths and nothing that says how wide they are.

    Example::

        batch = search_inputs(
            num_levels=4, candidate_request=candidate_request, query_tokens=query_tokens, query_index=query_index,
            title_tokens=title_tokens, title_index=title_index, history_lengths=lengths, history_click=clicks,
        )
    """
    R, C, K = query_index.shape[0], candidate_request.shape[0], num_levels
    known = {
        "candidate_request": candidate_request,
        "query_tokens": query_tokens,
        "query_index": query_index,
        "title_tokens": title_tokens,
        "title_index": title_index,
        **given,
    }
    if unknown := known.keys() - SearchInputs.__annotations__.keys():
        raise ValueError(f"{min(unknown)}: no field of SearchInputs")
    L, M = (_event_width(family, given) for family in ("history", "peer"))
    none = torch.zeros((), device=title_index.device)
    fields = {name: none.expand(R) for name in ("user_events", "user_query_events", "query_events")}
    fields |= {f"{who}_{what}": none.expand(R, K + 1) for who in ("user", "query", "group") for what in ("shown", "clicked")}
    fields |= {"item_shown": none.expand(C), "item_clicked": none.expand(C), "candidate_predicted": none.expand(C, K)}
    fields |= {name: none.long().expand(C) for name in ("position", "level")}
    for family, width in (("history", L), ("peer", M)):
        fields |= {f"{family}_{name}": none.long().expand(R, width) for name in ("level", "click", "position")}
        fields |= {f"{family}_age": none.expand(R, width), f"{family}_predicted": none.expand(R, 0, K)}
        fields[f"{family}_lengths"] = none.long().expand(R)
    fields["history_title_tokens"] = none.long().expand(1, title_tokens.shape[1])
    fields["history_title_index"] = none.long().expand(R, L)
    fields |= {"request_weight": (none + 1).expand(R), "candidate_weight": (none + 1).expand(C)}
    fields |= {"relevance": (none + torch.nan).expand(C), **known}
    for who in ("user", "query", "group", "item"):
        fields.setdefault(f"{who}_examined", fields[f"{who}_shown"])
    return cast(SearchInputs, SimpleNamespace(**fields))


_PAST = {
    "own": ("user_events", "user_query_events", "user_shown", "user_clicked", "user_examined", "history_lengths"),
    "peers": (
        "query_events",
        "query_shown",
        "query_clicked",
        "query_examined",
        "group_shown",
        "group_clicked",
        "group_examined",
        "peer_lengths",
    ),
}


def without_past(batch: SearchInputs, whose: Literal["own", "peers"]) -> SearchInputs:
    """The batch as if the user, or the other users under the query and its group, had no past.

    Counts, counters and lengths of that past are zero; what lies beyond the lengths is not read, and stays, as all other
    fields do, the same tensor. Ids stay: what a table has learned of a user or a query is no part of it. The item's
    counters stay too.
    """
    fields = {name: getattr(batch, name) for name in SearchInputs.__annotations__}
    fields |= {name: torch.zeros_like(fields[name]) for name in _PAST[whose]}
    return cast(SearchInputs, SimpleNamespace(**fields))


def _event_width(family: Literal["history", "peer"], given: dict[str, Tensor]) -> int:
    """L or M."""
    names = [f"{family}_{name}" for name in ("level", "click", "position", "age", "title_index")]
    wide = [given[name].shape[1] for name in names if name in given]
    if not wide and f"{family}_lengths" in given:
        raise ValueError(f"{family}_lengths: give one of {', '.join(names[:4])} too, which says how wide the past is")
    return max(wide, default=0)


class Events(NamedTuple):
    """Past events of R requests, left-aligned."""

    vectors: Tensor
    """(R, L, D) what an event is compared by."""
    lengths: Tensor
    """(R,) real events."""
    level: Tensor
    """(R, L) in 0..K."""
    click: Tensor
    """(R, L) 0 or 1."""
    position: Tensor
    """(R, L) from 1, 0: not logged."""
    age: Tensor
    """(R, L) seconds."""
    predicted: Tensor | None = None
    """(R, L, K) probabilities of the levels where none is known, else zero; None or (R, 0, K): nothing is predicted."""

    def by_level(self, table: Tensor) -> Tensor:
        """(R, L, ...) rows of a table (K + 1, ...) by level, index 0 for none; a predicted level is the mean of its rows."""
        return _by_level(self.level, self.predicted, table)


def past_events(batch: SearchInputs, family: Literal["history", "peer"], vectors: Tensor) -> Events:
    """The own or the peers' events of a batch, compared by (R, L, D) vectors."""
    happened = (getattr(batch, f"{family}_{name}") for name in ("lengths", "level", "click", "position", "age", "predicted"))
    return Events(vectors, *happened)


def counters(batch: SearchInputs, who: str) -> tuple[Tensor, Tensor, Tensor]:
    """Shown, clicked and examined counters of `user`, `query`, `group` (R, K + 1) or `item` (C, 1)."""
    shown, clicked, examined = (getattr(batch, f"{who}_{what}") for what in ("shown", "clicked", "examined"))
    return (shown[:, None], clicked[:, None], examined[:, None]) if who == "item" else (shown, clicked, examined)


class CandidateSlots:
    """Moves candidate rows (C, ...) into per-request slots (R, P, ...) and back.

    Args:
        candidate_request: (C,) int64, ascending over real candidates; padding rows last.
        candidate_weight: (C,) float32, zero for padding.
        num_requests: R.
    """

    def __init__(self, candidate_request: Tensor, candidate_weight: Tensor, num_requests: int) -> None:
        real = candidate_weight > 0
        counts = torch.zeros(num_requests, dtype=torch.long, device=real.device).index_add_(0, candidate_request, real.long())
        starts = counts.cumsum(0) - counts
        slot = torch.arange(real.shape[0], device=real.device) - starts[candidate_request]
        self.shape = (num_requests, max(int(counts.max()), 1))
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


class LookedUp:
    """Embeddings by request, by candidate and by event, from what TorchRec looked up.

    Args:
        batch: tells which candidate belongs where.
        sequences: jagged vectors of stride R by feature.
        bags: (C, dim) vectors by feature.
        request_features, candidate_features: names to unpack.
    """

    def __init__(
        self,
        batch: SearchInputs,
        sequences: dict[str, JaggedTensor],
        bags: dict[str, Tensor],
        request_features: Iterable[str],
        candidate_features: Iterable[str],
    ) -> None:
        R, C = batch.request_weight.shape[0], batch.candidate_weight.shape[0]
        self._batch, self._sequences = batch, sequences
        self.request = {name: sequences[name].to_padded_dense(1).view(R, -1).float() for name in request_features}
        self.candidate: dict[str, Tensor] = {}
        for name in candidate_features:
            rows = _rows_of(name, sequences, bags)
            self.candidate[name] = nn.functional.pad(rows.float(), (0, 0, 0, C - rows.shape[0]))

    def read_with(self, batch: SearchInputs) -> LookedUp:
        """The same embeddings, with a batch that has the same candidates in the same places and another past."""
        other = copy.copy(self)
        other._batch = batch
        return other

    @cached_property
    def slots(self) -> CandidateSlots:
        """Where the candidates stand within their requests."""
        batch = self._batch
        return _slots(batch.candidate_request, batch.candidate_weight, batch.request_weight.shape[0])

    def rows(self, names: Iterable[str]) -> Tensor:
        """(C, sum of widths) the named features of each candidate, those of its request among them."""
        to_request, weight = self._batch.candidate_request, self._batch.candidate_weight
        parts = [self.candidate[n] if n in self.candidate else self.request[n][to_request] for n in names]
        return torch.cat(parts, dim=1) if parts else weight.new_zeros(weight.shape[0], 0)

    def events(self, family: Literal["history", "peer"], names: Iterable[str]) -> Events | None:
        """The past events with their named sequence features side by side; None without any."""
        length = getattr(self._batch, f"{family}_level").shape[1]
        parts = [self._sequences[name].to_padded_dense(length).float() for name in names]
        return past_events(self._batch, family, torch.cat(parts, dim=2)) if parts else None


# What looks at its inputs stands in functions of their own, which torch.fx leaves whole.
@torch.fx.wrap
def _by_level(level: Tensor, predicted: Tensor | None, table: Tensor) -> Tensor:
    flat = table.reshape(table.shape[0], -1)
    rows = nn.functional.embedding(level, flat)
    if predicted is not None and predicted.shape[1]:
        rows = torch.where((predicted > 0).any(2, keepdim=True), predicted @ flat[1:], rows)
    return rows.view(*level.shape, *table.shape[1:])


@torch.fx.wrap
def _rows_of(name: str, sequences: dict[str, JaggedTensor], bags: dict[str, Tensor]) -> Tensor:
    return bags[name] if name in bags else sequences[name].values()


@torch.fx.wrap
def _slots(candidate_request: Tensor, candidate_weight: Tensor, requests: int) -> CandidateSlots:
    return CandidateSlots(candidate_request, candidate_weight, requests)
