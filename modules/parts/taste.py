"""Taste: which items a user likes for what they are, from the clicks and skips of the past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..inputs import CandidateSlots, ComparedEvents, Inputs
from ..text.relevance import TextReading
from .base import Given, Part, PartOutput, ReportedPart
from .posterior import GaussianPosterior, Posterior


class TitleBag(nn.Module):
    r"""A vector of a title as the sum of its tokens' vectors, divided by the root of their number.

    Of a title with the words :math:`w_1..w_n`, special tokens not among them, and a learned table :math:`E` it is
    :math:`n^{-1/2} \sum_i E[w_i]`, 0 without a word: as long for a long title as for a short one while the vectors are random.
    Cheap enough for whole histories, and known for an item that was never shown.

    Args:
        vocab_size: V, rows of the table.
        dim: width.
        special_tokens: ids that are no words; 0 is padding.

    Example::

        bag = TitleBag(vocab_size=50, dim=8)
        titles = bag(torch.tensor([[2, 7, 8, 3], [2, 3, 0, 0]]))  # (N, W)
        assert titles.shape == (2, 8) and titles[1].eq(0).all()
    """

    def __init__(self, vocab_size: int, dim: int, *, special_tokens: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.token.weight, std=0.3 / dim**0.5)
        is_word = torch.ones(vocab_size)
        is_word[list(special_tokens)] = 0.0
        self.is_word: Tensor
        self.register_buffer("is_word", is_word)

    def forward(self, tokens: Tensor) -> Tensor:
        """The vectors of titles.

        Args:
            tokens: (N, W) int64.

        Returns:
            (N, dim) float.
        """
        weight = self.is_word[tokens]
        summed = nn.functional.embedding_bag(tokens, self.token.weight, per_sample_weights=weight, mode="sum")
        return summed * weight.sum(1, keepdim=True).clamp(min=1.0).rsqrt()


class EventTaste(nn.Module):
    r"""A user's taste as the Gaussian posterior over vectors of the past events.

    Let :math:`\phi_j` be the vector of event j, :math:`l_j` its level, :math:`p_j` its position and :math:`c_j` its click. From
    anybody a click is expected at the rate :math:`e_j = \sigma(\lambda_{l_j} + \rho_{p_j})`, with learned logits of level and
    position. What was clicked beyond that, :math:`c_j - e_j`, with the information :math:`e_j (1 - e_j)`, makes a
    `GaussianPosterior`; its mean along a candidate's vector is the user's taste for it. Re-derived here.

    Args:
        num_levels: K.
        num_positions: positions with an examination of their own; 0 is "not logged".

    Example::

        taste = EventTaste(num_levels=4)
        happened = {
            "level": torch.tensor([[4, 1, 0]]),  # 0: no grade
            "click": torch.tensor([[1, 0, 0]]),
            "position": torch.tensor([[1, 2, 0]]),  # 0: not logged
            "age": torch.tensor([[3600.0, 60.0, 0.0]]),
            "predicted": torch.zeros(1, 0, 4),
        }
        events = Events(happened, lengths=torch.tensor([2]))  # R = 1 request with 2 of L = 3 events
        vectors = torch.eye(2)  # of what was clicked, and of what was passed over
        past = ComparedEvents(events, vectors=vectors[[0, 1, 1]].unsqueeze(0))
        slots = CandidateSlots(torch.tensor([0, 0]), torch.ones(2), num_requests=1)
        found = taste(vectors, slots, past)
        assert found.mean.shape == (2,) and found.mean[0] > 0 > found.mean[1]
    """

    offsets = ("level_logit", "position_logit")

    def __init__(self, num_levels: int, *, num_positions: int = 10) -> None:
        super().__init__()
        self.num_positions = num_positions
        self.level_logit = nn.Parameter(torch.full((num_levels + 1,), -1.4))
        self.position_logit = nn.Parameter(torch.zeros(num_positions + 1))
        self.posterior = GaussianPosterior()

    def forward(self, candidates: Tensor, slots: CandidateSlots, past: ComparedEvents) -> Posterior:
        """The taste for each candidate.

        Args:
            candidates: (C, dim) float, their vectors.
            slots: which request each belongs to.
            past: events compared by their vectors (R, L, dim).

        Returns:
            (C,) float each; 0 and 1 without history.
        """
        events = past.events
        position = events.features["position"].clamp(max=self.num_positions)
        rate = (events.by_level(self.level_logit) + self.position_logit[position]).sigmoid()
        real = torch.arange(position.shape[1], device=position.device) < events.lengths.unsqueeze(1)
        surplus, information = (events.features["click"] - rate) * real, rate * (1 - rate) * real
        found = self.posterior(past.vectors, surplus, information, slots.scatter(candidates))
        return Posterior(*(slots.gather(part.unsqueeze(2)).squeeze(1) for part in found))


class Taste(EventTaste):
    r"""`EventTaste` over the vectors of titles, `TitleBag`.

    Args:
        vocab_size: of the title tokens.
        dim: width of the title vectors.
        num_levels: K.
        num_positions: as of `EventTaste`.
        special_tokens: ids that are no words; 0 is padding.

    Example::

        taste = Taste(vocab_size=50, dim=8, num_levels=4)
        happened = {
            "level": torch.tensor([[4, 1, 0]]),  # 0: no grade
            "click": torch.tensor([[1, 0, 0]]),
            "position": torch.tensor([[1, 2, 0]]),  # 0: not logged
            "age": torch.tensor([[3600.0, 60.0, 0.0]]),
            "predicted": torch.zeros(1, 0, 4),
        }
        events = Events(happened, lengths=torch.tensor([2]))  # R = 1 request with 2 of L = 3 events
        titles = taste.title(torch.tensor([[7, 8], [9, 5]]))  # of what was clicked, and of what was passed over
        past = ComparedEvents(events, vectors=titles[[0, 1, 1]].unsqueeze(0))
        slots = CandidateSlots(torch.tensor([0, 0]), torch.ones(2), num_requests=1)
        found = taste(titles, slots, past)
        assert found.mean.shape == (2,) and found.mean[0] > found.mean[1]
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        dim: int,
        num_levels: int,
        num_positions: int = 10,
        special_tokens: tuple[int, ...] = (0, 1, 2, 3, 4),
    ) -> None:
        super().__init__(num_levels, num_positions=num_positions)
        self.title = TitleBag(vocab_size, dim, special_tokens=special_tokens)


class TitleTaste(Part):
    """Taste as a part of a ranker: its mean shifts the logits of all levels alike, mean and variance are features.

    Args:
        taste: the posterior over title vectors.

    Example::

        happened = {name: torch.tensor([[1, 0]]) for name in ("level", "click", "position", "age")}
        happened["predicted"] = torch.zeros(1, 0, 4)
        inputs = Inputs(
            request={},
            candidate={},
            sequences={"history": Events(happened, lengths=torch.tensor([1]))},
            texts={
                "title": Texts(torch.tensor([[7, 8], [9, 5]]), rows=torch.tensor([0, 1])),
                "history_title": Texts(torch.tensor([[7, 6]]), rows=torch.tensor([[0, 0]])),
            },
            request_weight=torch.ones(1),
            candidate_request=torch.tensor([0, 0]),
            candidate_weight=torch.ones(2),
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        output = TitleTaste(Taste(vocab_size=50, dim=8, num_levels=4))(inputs, text)
        assert output.shift.shape == (2, 1) and output.features.shape == (2, 2)
    """

    num_features = 2
    reported: ClassVar[Mapping[str, ReportedPart]] = {
        "taste": ReportedPart("what the titles of the own past say for this one, in logits", signed=True),
        "taste_variance": ReportedPart("share of the taste's variance that the own past leaves open", where="explanations"),
    }

    def __init__(self, taste: Taste) -> None:
        super().__init__()
        self.taste = taste

    @classmethod
    def build(cls, given: Given, **settings: Any) -> TitleTaste:
        """As of `Part`."""
        taste = Taste(given.vocab_size, num_levels=given.num_levels, special_tokens=given.special_tokens, **settings)
        return cls(taste)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, 2), a shift (C, 1), and the `Posterior`."""
        title, past = inputs.texts["title"], inputs.texts["history_title"]
        vectors = self.taste.title(past.tokens)[past.rows]  # (R, L, dim)
        titles = self.taste.title(title.tokens)[title.rows]
        found = self.taste(titles, inputs.slots, ComparedEvents(inputs.sequences["history"], vectors))
        mean, variance = found.mean.unsqueeze(1), found.variance.unsqueeze(1)
        report = {"taste": found.mean, "taste_variance": found.variance}
        return PartOutput(torch.cat([mean, variance], dim=1), mean, report, found)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """`taste`: the vectors of the title tokens, many, each with few clicks to learn from."""
        return {"taste": list(self.taste.title.parameters())}
