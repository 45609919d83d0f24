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
"""How a `PrecisionGate` weighs."""


class Preference(NamedTuple):
    """What whoever asks wants of the relevance of C candidates."""

    vector: Tensor
    """(C, dim) float, the preference `r`."""
    weights: Tensor
    """(C, 3) float, how much of it is the own history, the peers, the prior; they sum to 1."""


class EventAttention(nn.Module):
    r"""Masked multi-head target attention whose values are what happened at the events, not what they were about.

    Let :math:`x` be a target (a candidate, or a request), :math:`x_j` the vector of event j, of the same features, and
    :math:`h_j` its `EventEmbedding`: a `TargetAttention` with target :math:`x`, keys :math:`x_j` and values :math:`h_j`. The
    masked multi-head target attention over levels and feedback is PRECTR-V2's (arXiv 2602.20676), as its summaries tell.

    Args:
        key_dim: width of the vectors that targets and events share.
        num_levels: K.
        dim: width of the output.
        num_heads: heads.
        event_dim: width of the event embedding.

    Example::

        happened = {
            "level": torch.tensor([[4, 1, 0]]),  # 0: no grade
            "click": torch.tensor([[1, 0, 0]]),
            "position": torch.tensor([[1, 2, 0]]),  # 0: not logged
            "age": torch.tensor([[3600.0, 60.0, 0.0]]),
            "predicted": torch.zeros(1, 0, 4),
        }
        events = Events(happened, lengths=torch.tensor([2]))  # R = 1 request with 2 of L = 3 events
        past = ComparedEvents(events, vectors=torch.randn(1, 3, 8))
        attention = EventAttention(key_dim=8, num_levels=4, dim=32, num_heads=2)
        target = torch.randn(1, 5, 8)  # P = 5 candidates
        assert attention(target, past).shape == (1, 5, 32)
        assert attention.weights(target, past).shape == (1, 2, 5, 4)  # (R, H, P, L + 1)
    """

    def __init__(self, key_dim: int, num_levels: int, *, dim: int, num_heads: int, event_dim: int = 16) -> None:
        super().__init__()
        self.event = EventEmbedding(num_levels, event_dim)
        self.attention = TargetAttention(key_dim, key_dim, event_dim, dim=dim, num_heads=num_heads)

    def forward(self, target: Tensor, past: ComparedEvents) -> Tensor:
        """What happened where a target was asked for.

        Args:
            target: (R, P, key_dim) float.
            past: events compared by (R, L, key_dim).

        Returns:
            (R, P, dim) float; the learned prior where there are no events.
        """
        return self.attention(target, past.vectors, self.event(past.events), past.events.lengths)

    def weights(self, target: Tensor, past: ComparedEvents) -> Tensor:
        """The weights behind `forward`, (R, H, P, L + 1) as of `TargetAttention.weights`."""
        return self.attention.weights(target, past.vectors, past.events.lengths)


class PrecisionGate(nn.Module):
    r"""Weighs own preference, the peers' and a learned prior.

    Let :math:`r_u` be the preference that the own history tells, :math:`r_q` that of the peers under the query, and :math:`r_0` a
    learned prior. The preference is :math:`r = (k_u r_u + k_q r_q + k_0 r_0) / (k_u + k_q + k_0)`, with :math:`k_u = 0` without
    an own past and :math:`k_q = 0` without peers. Otherwise, by kind,

    - `precision`: the k are the softplus of an MLP on the counts of events: a user without a history leans on the peers, a
      query without peers on the prior. Re-derived here; Kalman-filter attention (arXiv 2010.00985) is the model for it.
    - `mlp`: the k are the exponentials of an MLP that also sees :math:`r_u` and :math:`r_q`.
    - `none`: the k are 1, the plain mean of what is there.

    Args:
        dim: width of the vectors.
        num_counts: counts, as logarithms.
        kind: the form.

    Example::

        gate = PrecisionGate(dim=8, num_counts=4, kind="precision")
        own, peers = torch.randn(2, 8), torch.randn(2, 8)
        there = torch.tensor([[1.0, 1.0], [0.0, 0.0]])  # the second candidate's user and query have no past
        preference = gate(own, peers, there, counts=torch.rand(2, 4))
        assert preference.weights[1].tolist() == [0.0, 0.0, 1.0]
        assert preference.vector[1].equal(gate.prior)
    """

    offsets = ("prior",)

    def __init__(self, dim: int, num_counts: int, kind: GateKind) -> None:
        super().__init__()
        self.kind = kind
        self.prior = nn.Parameter(torch.zeros(dim))
        in_dim = num_counts + (2 * dim if kind == "mlp" else 0)
        self.score = perceptron(in_dim, 16, 3) if kind != "none" else None

    def forward(self, own: Tensor, peers: Tensor, there: Tensor, counts: Tensor) -> Preference:
        """The preference for each candidate.

        Args:
            own: (C, dim) float, what the own history tells.
            peers: (C, dim) float, what that of the peers tells.
            there: (C, 2) float, 1 or 0: whether either has events.
            counts: (C, num_counts) float, logarithms of how many.

        Returns:
            (C, dim) and (C, 3) float.
        """
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
    r"""The preference vector of each candidate: own history by intent and by category, peers under the query, gated.

    Let :math:`x_q` be the vector of the request (its query) and :math:`x_i` that of a candidate (item, category, brand),
    :math:`H` the user's own past events and :math:`G` those of other users under the query, :math:`s_u` the level statistics of
    the user and :math:`s_q` those of the query and its group. With `EventAttention` :math:`A`, one of each kind, and small MLPs
    :math:`f`,

    .. math:: r_u = A_{intent}(x_q, H) + A_{category}(x_i, H) + f_u(s_u), \quad r_q = A_{peers}(x_i, G) + f_q(s_q),

    and `PrecisionGate` weighs :math:`r_u`, :math:`r_q` and a prior. Own preference by intent and by category, and mining it
    across users, are PRECTR-V2's (arXiv 2602.20676); statistics and gate are re-derived here.

    Args:
        intent_dim: width of the request vectors that own events are compared by; 0 leaves the intent part out.
        item_dim: width of the item vectors.
        num_levels: K.
        own: whether there is :math:`r_u`.
        peers: whether there is :math:`r_q`.
        statistics_dim: width of the statistics of the user, and of each of the query and its group.
        num_counts: width of the counts.
        gate: see `PrecisionGate`.
        dim: width of the preference.
        num_heads: heads.

    Example::

        module = RelevancePreference(
            intent_dim=6, item_dim=8, num_levels=4, own=True, peers=False, statistics_dim=12, num_counts=4, dim=32
        )
        happened = {
            "level": torch.tensor([[4, 1, 0]]),  # 0: no grade
            "click": torch.tensor([[1, 0, 0]]),
            "position": torch.tensor([[1, 2, 0]]),  # 0: not logged
            "age": torch.tensor([[3600.0, 60.0, 0.0]]),
            "predicted": torch.zeros(1, 0, 4),
        }
        events = Events(happened, lengths=torch.tensor([2]))  # R = 1 request with 2 of L = 3 events
        to_request = torch.tensor([0, 0])  # C = 2 candidates
        preference = module(
            intent=torch.randn(1, 6),
            own_by_intent=ComparedEvents(events, torch.randn(1, 3, 6)),
            items=torch.randn(2, 8),
            own_by_item=ComparedEvents(events, torch.randn(1, 3, 8)),
            peer_events=None,
            slots=CandidateSlots(to_request, torch.ones(2), num_requests=1),
            to_request=to_request,
            own_statistics=torch.randn(1, 12),
            peer_statistics=None,
            counts=torch.rand(1, 4),
        )
        assert preference.vector.shape == (2, 32) and preference.weights[:, 1].eq(0).all()
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
            intent: (R, intent_dim) float, vectors of the requests.
            own_by_intent: own events, compared by (R, L, intent_dim).
            items: (C, item_dim) float, vectors of the candidates.
            own_by_item: own events, compared by (R, L, item_dim).
            peer_events: those of other users, compared by (R, M, item_dim).
            slots: where the candidates stand within their requests.
            to_request: (C,) int64, the request of each candidate.
            own_statistics: (R, statistics_dim) float, zeros without a past.
            peer_statistics: (R, 2 statistics_dim) float, of the query and of its group.
            counts: (R, num_counts) float, logarithms of numbers of events.

        Returns:
            (C, dim) and (C, 3) float.
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
