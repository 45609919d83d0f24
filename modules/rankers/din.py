"""DIN: what of the own history speaks for a candidate, by an activation unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ..attention.activation import ActivationKind, ActivationUnit
from ..inputs import ComparedEvents, Inputs
from ..parts.base import Attention, Given, Part, PartOutput
from ..parts.interest import EventEmbedding
from ..parts.position import Examination
from ..text.relevance import TextReading
from .dnn import DNN


class ActivatedInterest(Part):
    r"""The sum of the own events, clicked and skipped, :math:`\sum_j a(q, k_j, e_j) [k_j; e_j]`, with `ActivationUnit` for a.

    Args:
        widths: of the history's features that candidates, or their requests, have too, by name.
        num_levels: K.
        hidden: widths of the unit's hidden layers.
        activation: after each of them.
        event_dim: width of the embedding of what happened at an event.

    Example::

        happened = {name: torch.tensor([[1, 0]]) for name in ("level", "click", "position", "age")}
        happened |= {"item_id": torch.randn(1, 2, 8), "predicted": torch.zeros(1, 0, 4)}
        inputs = Inputs(
            {}, {"item_id": torch.randn(2, 8)}, {"history": Events(happened, lengths=torch.tensor([1]))}, {},
            request_weight=torch.ones(1), candidate_request=torch.tensor([0, 0]), candidate_weight=torch.ones(2),
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        part = ActivatedInterest({"item_id": 8}, num_levels=4)
        assert part(inputs, text).features.shape == (2, part.num_features) == (2, 24)
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        num_levels: int,
        *,
        hidden: Sequence[int] = (36,),
        activation: ActivationKind = "dice",
        event_dim: int = 16,
    ) -> None:
        super().__init__()
        dim = sum(widths.values())
        self.names, self.num_features = list(widths), dim + event_dim
        self.event = EventEmbedding(num_levels, event_dim)
        self.unit = ActivationUnit(dim, event_dim, hidden=hidden, activation=activation)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, dim + event_dim)."""
        weights, past, event = self._weights(inputs)
        pooled = weights @ torch.cat([past.vectors, event], dim=2)  # (R, P, dim + event_dim)
        return PartOutput(inputs.slots.gather(pooled))

    def attention(self, inputs: Inputs) -> dict[str, Attention]:
        """`activation`, to the own history."""
        return {"activation": Attention("history", self._weights(inputs)[0].unsqueeze(1))}

    def _weights(self, inputs: Inputs) -> tuple[Tensor, ComparedEvents, Tensor]:
        """(R, P, L), the events, and what happened at them (R, L, event_dim)."""
        past = inputs.sequences["history"].compared_by(self.names)
        event = self.event(past.events)
        real = inputs.candidate_weight.unsqueeze(1)
        targets, there = (inputs.slots.scatter(rows) for rows in (inputs.rows(self.names), real))
        return self.unit(targets, past.vectors, event, past.events.lengths, there.squeeze(2) > 0), past, event


class DIN(DNN):
    r"""`DNN` with `ActivatedInterest` beside its parts: DIN (arXiv 1706.06978).

    As published, the weights come from an MLP with Dice and are not normalised. What differs: skipped events are in the history
    too, and each event has an embedding of what happened.

    Args:
        parts: what the tower reads besides, by name, in order.
        interest: the history's side.
        tower: widths of its hidden layers.
        dropout: on the hidden layers.
        position: examination by position; None: the position has no part.
        labels: those beside the click -> what comes before each.

    Example::

        happened = {name: torch.tensor([[1, 0]]) for name in ("level", "click", "position", "age")}
        happened |= {"item_id": torch.randn(1, 2, 8), "predicted": torch.zeros(1, 0, 4)}
        inputs = Inputs(
            {}, {"item_id": torch.randn(2, 8)}, {"history": Events(happened, lengths=torch.tensor([1]))}, {},
            request_weight=torch.ones(1), candidate_request=torch.tensor([0, 0]), candidate_weight=torch.ones(2),
        )
        features = LookedUpFeatures(Widths(request={}, candidate={"item_id": 8}, sequences={}))
        model = DIN({"features": features}, ActivatedInterest({"item_id": 8}, num_levels=4), tower=[16])
        assert model(inputs).ranking["click"].logit.shape == (2,)
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        interest: ActivatedInterest,
        *,
        tower: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        position: Examination | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__({**parts, "interest": interest}, tower=tower, dropout=dropout, position=position, labels=labels)

    @classmethod
    def build(cls, given: Given, **settings: Any) -> Self:
        """As of `DNN`, with `attention` and `activation`, the hidden layers of the activation unit.

        Raises:
            ValueError: there is nothing to compare events by.
        """
        history = given.widths.sequences.get("history", {})
        if not history:
            raise ValueError("kind din needs at least one history_* feature, such as history_item_id")
        widths = {name: given.widths.compared(name) for name in history}
        hidden, activation = settings.pop("attention"), settings.pop("activation")
        interest = ActivatedInterest(widths, given.num_levels, hidden=hidden, activation=activation)
        return super().build(given, interest=interest, **settings)
