"""Interest: what of a user's own history speaks for a candidate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention.target import TargetAttention
from ..inputs import CandidateSlots, ComparedEvents, Events, Inputs
from ..text.relevance import TextReading
from .base import Attention, Given, Part, PartOutput


class EventEmbedding(nn.Module):
    r"""A vector of what happened at an event: its level and feedback together, its position and its age.

    Of an event with the level :math:`l` in 0..K (0: no grade), the click :math:`c` (0 or 1), the position :math:`p` and the age
    :math:`t` in seconds it is :math:`F[l, c] + P[p] + A[\lfloor \log_2 t \rfloor]`, with learned tables F, P and A. Where levels
    :math:`\pi` are predicted, :math:`\sum_k \pi_k F[k, c]` stands in place of the first. The paper's values are such sums as its
    summaries tell; the form is re-derived here.

    Args:
        num_levels: K; level 0 stands for a missing grade.
        dim: width.
        num_positions: positions with a vector of their own; deeper ones share the last, 0 is "not logged".

    Example::

        happened = {
            "level": torch.tensor([[4, 1, 0]]),  # 0: no grade
            "click": torch.tensor([[1, 0, 0]]),
            "position": torch.tensor([[1, 2, 0]]),  # 0: not logged
            "age": torch.tensor([[3600.0, 60.0, 0.0]]),
            "predicted": torch.zeros(1, 0, 4),
        }
        events = Events(happened, lengths=torch.tensor([2]))  # R = 1 request with 2 of L = 3 events
        assert EventEmbedding(num_levels=4, dim=16)(events).shape == (1, 3, 16)
    """

    num_ages = 24  # ages of 2^0 .. 2^23 seconds and more

    def __init__(self, num_levels: int, dim: int, *, num_positions: int = 10) -> None:
        super().__init__()
        self.num_positions = num_positions
        self.feedback = nn.Embedding(2 * (num_levels + 1), dim)  # by level and click
        self.position = nn.Embedding(num_positions + 1, dim)
        self.age = nn.Embedding(self.num_ages, dim)
        for embedding in (self.feedback, self.position, self.age):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, events: Events) -> Tensor:
        """The vectors of past events.

        Args:
            events: of R requests; reads `level`, `click`, `position`, `age` and `predicted`.

        Returns:
            (R, L, dim) float; what stands beyond the lengths has no meaning.
        """
        happened, num_levels = events.features, self.feedback.num_embeddings // 2
        click = (happened["click"] > 0).unsqueeze(2)
        level = events.by_level(torch.eye(num_levels, device=click.device))  # (R, L, K + 1), how much each level counts
        feedback = torch.stack([level * ~click, level * click], dim=3).flatten(2)
        position = happened["position"].clamp(max=self.num_positions)
        age = happened["age"].clamp(min=1).log2().long().clamp(max=self.num_ages - 1)
        place = torch.stack([position, age + self.num_positions + 1], dim=2)
        width = self.num_positions + 1 + self.num_ages
        others = level.new_zeros(level.size(0), level.size(1), width).scatter_(2, place, 1.0)
        tables = torch.cat([self.feedback.weight, self.position.weight, self.age.weight])
        return torch.cat([feedback, others], dim=2) @ tables  # one product: cheaper than three lookups with dense gradients


class InterestTower(nn.Module):
    r"""Target attention over the user's own events: shown ones with their feedback, level, position and age.

    Let :math:`x` be a candidate's vector, :math:`x_j` that of event j, of the same features, :math:`c_j` its click and
    :math:`h_j` its `EventEmbedding`. The interest is :math:`\mathrm{relu}` of a `TargetAttention` with target :math:`x`, keys
    :math:`[x_j; h_j]` and values :math:`[x_j; c_j x_j; h_j]`: deep interest (arXiv 1706.06978) over skips as well as clicks.

    Args:
        item_dim: width of the vectors that an event and a candidate share (item, attributes, query).
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
        history = ComparedEvents(events, vectors=torch.randn(1, 3, 8))
        slots = CandidateSlots(torch.tensor([0, 0]), torch.ones(2), num_requests=1)
        interest = InterestTower(item_dim=8, num_levels=4, dim=32, num_heads=2)
        assert interest(torch.randn(2, 8), slots, history).shape == (2, 32)
    """

    def __init__(self, item_dim: int, num_levels: int, *, dim: int, num_heads: int, event_dim: int = 16) -> None:
        super().__init__()
        self.event = EventEmbedding(num_levels, event_dim)
        self.attention = TargetAttention(item_dim, item_dim + event_dim, 2 * item_dim + event_dim, dim=dim, num_heads=num_heads)

    def forward(self, candidate: Tensor, slots: CandidateSlots, history: ComparedEvents) -> Tensor:
        """The interest in each candidate.

        Args:
            candidate: (C, item_dim) float.
            slots: where the candidates stand within their requests.
            history: own events, compared by (R, L, item_dim).

        Returns:
            (C, dim) float.
        """
        key, value = self._keys_and_values(history)
        return slots.gather(F.relu(self.attention(slots.scatter(candidate), key, value, history.events.lengths)))

    def weights(self, candidate: Tensor, slots: CandidateSlots, history: ComparedEvents) -> Tensor:
        """The weights behind `forward`, (R, H, P, L + 1) as of `TargetAttention.weights`."""
        return self.attention.weights(slots.scatter(candidate), self._keys_and_values(history)[0], history.events.lengths)

    def _keys_and_values(self, history: ComparedEvents) -> tuple[Tensor, Tensor]:
        event, vectors = self.event(history.events), history.vectors
        value = torch.cat([vectors, vectors * history.events.features["click"].unsqueeze(-1), event], dim=-1)
        return torch.cat([vectors, event], dim=-1), value


class Interest(Part):
    """Interest as a part of a ranker: what of a user's own history speaks for each candidate.

    Args:
        widths: of the history's features that candidates, or their requests, have too, by name.
        num_levels: K.
        dim: width of the interest.
        num_heads: heads.

    Example::

        happened = {name: torch.tensor([[1, 0]]) for name in ("level", "click", "position", "age")}
        happened |= {"item_id": torch.randn(1, 2, 8), "predicted": torch.zeros(1, 0, 4)}
        inputs = Inputs(
            request={},
            candidate={"item_id": torch.randn(2, 8)},
            sequences={"history": Events(happened, lengths=torch.tensor([1]))},
            texts={},
            request_weight=torch.ones(1),
            candidate_request=torch.tensor([0, 0]),
            candidate_weight=torch.ones(2),
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        part = Interest({"item_id": 8}, num_levels=4, dim=32)
        assert part(inputs, text).features.shape == (2, 32)
        assert part.attention(inputs)["interest"].weights.shape == (1, 2, 2, 2)  # (R, H, P, L)
    """

    def __init__(self, widths: dict[str, int], num_levels: int, *, dim: int = 32, num_heads: int = 2) -> None:
        super().__init__()
        self.names, self.num_features = list(widths), dim
        self.tower = InterestTower(sum(widths.values()), num_levels, dim=dim, num_heads=num_heads)

    @classmethod
    def build(cls, given: Given, **settings: Any) -> Interest:
        """As of `Part`."""
        history = given.widths.sequences.get("history", {})
        if not history:
            raise ValueError("needs at least one history_* feature, such as history_item_id")
        return cls({name: given.widths.compared(name) for name in history}, given.num_levels, **settings)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, dim)."""
        return PartOutput(self.tower(*self._read(inputs)))

    def attention(self, inputs: Inputs) -> dict[str, Attention]:
        """`interest`, to the own history."""
        return {"interest": Attention.with_prior("history", self.tower.weights(*self._read(inputs)))}

    def _read(self, inputs: Inputs) -> tuple[Tensor, CandidateSlots, ComparedEvents]:
        return inputs.rows(self.names), inputs.slots, inputs.sequences["history"].compared_by(self.names)
