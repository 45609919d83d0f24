"""Taste: which items a user likes for what they are, from the clicks and skips of the past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..inputs import CandidateSlots, ComparedEvents, Inputs
from ..text.relevance import TextReading
from .base import Part, PartOutput, ReportedPart
from .posterior import GaussianPosterior, Posterior


class TitleBag(nn.Module):
    """A vector of a title as the sum of its tokens' vectors, divided by the root of their number.

    Cheap enough for whole histories, and known for an item that was never shown.

    Args:
        vocab_size: V.
        dim: width.
        special_tokens: ids that are no words; 0 is padding.
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
        """Args: tokens: (N, W) int64. Returns: (N, dim)."""
        weight = self.is_word[tokens]
        summed = nn.functional.embedding_bag(tokens, self.token.weight, per_sample_weights=weight, mode="sum")
        return summed * weight.sum(1, keepdim=True).clamp(min=1.0).rsqrt()


class Taste(nn.Module):
    """A user's taste as the Gaussian posterior over the title vectors of the own past.

    Args:
        vocab_size: of the title tokens.
        dim: width of the title vectors.
        num_levels: K.
        num_positions: positions with an examination of their own; 0 is "not logged".
        special_tokens: ids that are no words; 0 is padding.
    """

    offsets = ("level_logit", "position_logit")

    def __init__(
        self,
        vocab_size: int,
        *,
        dim: int,
        num_levels: int,
        num_positions: int = 10,
        special_tokens: tuple[int, ...] = (0, 1, 2, 3, 4),
    ) -> None:
        super().__init__()
        self.num_positions = num_positions
        self.title = TitleBag(vocab_size, dim, special_tokens=special_tokens)
        self.level_logit = nn.Parameter(torch.full((num_levels + 1,), -1.4))
        self.position_logit = nn.Parameter(torch.zeros(num_positions + 1))
        self.posterior = GaussianPosterior()

    def forward(self, candidates: Tensor, slots: CandidateSlots, past: ComparedEvents) -> Posterior:
        """The taste for each candidate.

        Args:
            candidates: (C, dim) title vectors.
            slots: which request each belongs to.
            past: events compared by (R, L, dim), the vectors of their titles.

        Returns:
            (C,) each; 0 and 1 without history.
        """
        events = past.events
        position = events.features["position"].clamp(max=self.num_positions)
        rate = (events.by_level(self.level_logit) + self.position_logit[position]).sigmoid()
        real = torch.arange(position.shape[1], device=position.device) < events.lengths.unsqueeze(1)
        surplus, information = (events.features["click"] - rate) * real, rate * (1 - rate) * real
        found = self.posterior(past.vectors, surplus, information, slots.scatter(candidates))
        return Posterior(*(slots.gather(part.unsqueeze(2)).squeeze(1) for part in found))


class TitleTaste(Part):
    """Taste as a part of a ranker: its mean shifts the logits of all levels alike, mean and variance are features.

    Args:
        taste: the posterior over title vectors.
    """

    num_features = 2
    reported: ClassVar[Mapping[str, ReportedPart]] = {
        "taste": ReportedPart("what the titles of the own past say for this one, in logits", signed=True)
    }

    def __init__(self, taste: Taste) -> None:
        super().__init__()
        self.taste = taste

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, 2), a shift (C, 1), and the `Posterior`."""
        title, past = inputs.texts["title"], inputs.texts["history_title"]
        vectors = self.taste.title(past.tokens)[past.rows]  # (R, L, dim)
        titles = self.taste.title(title.tokens)[title.rows]
        found = self.taste(titles, inputs.slots, ComparedEvents(inputs.sequences["history"], vectors))
        mean, variance = found.mean.unsqueeze(1), found.variance.unsqueeze(1)
        return PartOutput(torch.cat([mean, variance], dim=1), mean, {"taste": found.mean}, found)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """`taste`: the vectors of the title tokens, many, each with few clicks to learn from."""
        return {"taste": list(self.taste.title.parameters())}
