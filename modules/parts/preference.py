"""Relevance preference: who asks for relevance, from the own history and from others under the query."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention.target import TargetAttention
from ..inputs import CandidateSlots, ComparedEvents
from ..layers import perceptron
from .interest import EventEmbedding

GateKind = Literal["precision", "mlp", "none"]


class Preference(NamedTuple):
    vector: Tensor
    """(C, dim) `r`."""
    weights: Tensor
    """(C, 3) how much of it is the own history, the peers, the prior."""


class EventAttention(nn.Module):
    """Masked multi-head target attention whose values are what happened at the events, not what they were about.

    Args:
        key_dim: width of the vectors that targets and events share.
        num_levels: K.
        dim: width of the output.
        num_heads: heads.
        event_dim: width of the event embedding.
    """

    def __init__(self, key_dim: int, num_levels: int, *, dim: int, num_heads: int, event_dim: int = 16) -> None:
        super().__init__()
        self.event = EventEmbedding(num_levels, event_dim)
        self.attention = TargetAttention(key_dim, key_dim, event_dim, dim=dim, num_heads=num_heads)

    def forward(self, target: Tensor, past: ComparedEvents) -> Tensor:
        """Args: target: (R, P, key_dim). Returns: (R, P, dim); the learned prior where there are no events."""
        return self.attention(target, past.vectors, self.event(past.events), past.events.lengths)

    def weights(self, target: Tensor, past: ComparedEvents) -> Tensor:
        """(R, H, P, L + 1) as of `TargetAttention.weights`."""
        return self.attention.weights(target, past.vectors, past.events.lengths)


class PrecisionGate(nn.Module):
    r"""Weighs own preference, the peers' and a learned prior.

    `precision`: :math:`r = (k_u r_{own} + k_q r_{peer} + k_0 r_0) / (k_u + k_q + k_0)`, each k the softplus of an MLP on the
    counts of events behind it, zero without any; the form is re-derived here. `mlp`: softmax weights from an MLP that also
    sees the vectors.
    `none`: the plain mean of what is there.

    Args:
        dim: width of the vectors.
        num_counts: counts, as logarithms.
        kind: the form.
    """

    offsets = ("prior",)

    def __init__(self, dim: int, num_counts: int, kind: GateKind) -> None:
        super().__init__()
        self.kind = kind
        self.prior = nn.Parameter(torch.zeros(dim))
        in_dim = num_counts + (2 * dim if kind == "mlp" else 0)
        self.score = perceptron(in_dim, 16, 3) if kind != "none" else None

    def forward(self, own: Tensor, peers: Tensor, there: Tensor, counts: Tensor) -> Preference:
        """Args: own, peers: (C, dim); there: (C, 2) 0 or 1, whether either has events; counts: (C, num_counts)."""
        present = torch.cat([there, torch.ones_like(there[:, :1])], dim=1)
        if self.score is None:
            weights = present
        elif self.kind == "precision":
            weights = F.softplus(self.score(counts)) * present
        else:
            weights = self.score(torch.cat([counts, own, peers], dim=1)).masked_fill(present == 0, -torch.inf).softmax(1)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-30)  # alone, the prior has exactly 1
        vector = weights[:, :1] * own + weights[:, 1:2] * peers + weights[:, 2:] * self.prior
        return Preference(vector, weights)


class RelevancePreference(nn.Module):
    """The preference vector of each candidate: own history by intent and by category, peers under the query, gated.

    Args:
        intent_dim: width of the request vectors that own events are compared by; 0 leaves the intent part out.
        item_dim: width of the item vectors.
        num_levels: K.
        own, peers: which parts exist.
        statistics_dim: width of the statistics of the user, and of each of the query and its group.
        gate: see `PrecisionGate`.
        dim: width of the preference.
        num_heads: heads.
        num_counts: width of the counts.
    """

    def __init__(
        self,
        intent_dim: int,
        item_dim: int,
        num_levels: int,
        *,
        own: bool,
        peers: bool,
        statistics_dim: int,
        num_counts: int,
        gate: GateKind = "precision",
        dim: int = 32,
        num_heads: int = 2,
    ) -> None:
        super().__init__()
        options = {"dim": dim, "num_heads": num_heads}
        self.dim = dim
        self.intent = EventAttention(intent_dim, num_levels, **options) if own and intent_dim else None
        self.category = EventAttention(item_dim, num_levels, **options) if own and item_dim else None
        self.peers = EventAttention(item_dim, num_levels, **options) if peers and item_dim else None
        self.own_statistics = perceptron(statistics_dim, 64, dim) if own else None
        self.peer_statistics = perceptron(2 * statistics_dim, 64, dim) if peers else None
        self.gate = PrecisionGate(dim, num_counts, gate)

    def forward(
        self,
        intent: Tensor | None,
        own_by_intent: ComparedEvents | None,
        items: Tensor,
        own_by_item: ComparedEvents | None,
        peer_events: ComparedEvents | None,
        slots: CandidateSlots,
        to_request: Tensor,
        own_statistics: Tensor | None,
        peer_statistics: Tensor | None,
        counts: Tensor,
    ) -> Preference:
        """Preference of every candidate.

        Args:
            intent: (R, intent_dim) vectors of the requests.
            own_by_intent, own_by_item, peer_events: past events with the vectors to compare them by.
            items: (C, item_dim).
            slots, to_request: where the candidates belong.
            own_statistics: (R, statistics_dim).
            peer_statistics: (R, 2 statistics_dim).
            counts: (R, num_counts).
        """
        C = items.shape[0]
        own, peers = items.new_zeros(C, self.dim), items.new_zeros(C, self.dim)
        targets = slots.scatter(items)
        if self.intent is not None and intent is not None and own_by_intent is not None:
            own = own + self.intent(intent.unsqueeze(1), own_by_intent).squeeze(1)[to_request]
        if self.category is not None and own_by_item is not None:
            own = own + slots.gather(self.category(targets, own_by_item))
        if self.own_statistics is not None and own_statistics is not None:
            own = own + self.own_statistics(own_statistics)[to_request]
        if self.peers is not None and peer_events is not None:
            peers = slots.gather(self.peers(targets, peer_events))
        if self.peer_statistics is not None and peer_statistics is not None:
            peers = peers + self.peer_statistics(peer_statistics)[to_request]
        there = torch.stack(
            [_past(counts, own_statistics, own_by_intent, own_by_item), _past(counts, peer_statistics, peer_events)], dim=1
        ).to(items.dtype)  # (R, 2)
        return self.gate(own, peers, there[to_request], counts[to_request])


def _past(counts: Tensor, statistics: Tensor | None, *events: ComparedEvents | None) -> Tensor:
    """(R,) bool, whether either tells of a past event; a caller may have events and no statistics."""
    past = torch.zeros_like(counts[:, 0], dtype=torch.bool)
    if statistics is not None:
        past = past | statistics.ne(0).any(1)
    for kind in events:
        past = past if kind is None else past | (kind.events.lengths > 0)
    return past
