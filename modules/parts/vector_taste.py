"""Taste by vectors that come ready made, such as those of images: what of the past looked like a candidate, and was clicked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..inputs import ComparedEvents, Inputs, Whose
from ..text.relevance import TextReading
from ..vectors import VectorColumn, VectorEncoding
from .base import Given, Part, PartOutput, ReportedPart
from .taste import EventTaste

_SEQUENCES: dict[Whose, str] = {"own": "history", "peers": "peer"}


class VectorTaste(Part):
    """`EventTaste` over each vector of items that past events have too, standardised and projected.

    The means shift the logits of all levels alike; means and variances are features. A missing vector says nothing, of a
    candidate as of an event.

    Args:
        vectors: what is known of each.
        num_levels: K.
        dim: width that each is projected to.
        whose: past: the user's own, that of peers, or both.

    Example::

        image = VectorColumn("candidate", "image", 2, [0.0, 0.0], [1.0, 1.0], history=True)
        happened = {name: torch.tensor([[1, 0]]) for name in ("level", "click", "position", "age")}
        happened |= {"predicted": torch.zeros(1, 0, 4), "image": torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])}
        inputs = Inputs(
            {}, {"image": torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]])},
            {"history": Events(happened, lengths=torch.tensor([2]))}, {},
            request_weight=torch.ones(1), candidate_request=torch.tensor([0, 0]), candidate_weight=torch.ones(2),
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        output = VectorTaste([image], num_levels=4)(inputs, text)
        assert output.features.shape == (2, 2) and output.shift[0] != 0 and output.shift[1] == 0
    """

    reported: ClassVar[Mapping[str, ReportedPart]] = {
        "vector_taste": ReportedPart("what the vectors of past events' items say for this one, in logits", signed=True)
    }

    def __init__(
        self, vectors: Sequence[VectorColumn], num_levels: int, *, dim: int = 16, whose: Sequence[Whose] = ("own",)
    ) -> None:
        super().__init__()
        self.names, self.sequences = [vector.name for vector in vectors], [_SEQUENCES[who] for who in whose]
        self.encode = nn.ModuleList(_weak_encoding(vector, dim) for vector in vectors)
        self.tastes = nn.ModuleList(EventTaste(num_levels) for _ in vectors for _ in self.sequences)
        self.num_features = 2 * len(self.names) * len(self.sequences)

    @classmethod
    def build(cls, given: Given, **settings: Any) -> VectorTaste:
        """As of `Part`."""
        vectors = [vector for vector in given.vectors if vector.history]
        if not vectors:
            raise ValueError("needs a vector of data.columns.items that past events have too; set its `history` to true")
        return cls(vectors, given.num_levels, **settings)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, `num_features`), a shift (C, 1) and its report."""
        found, tastes = [], iter(self.tastes)
        for name, encode in zip(self.names, self.encode, strict=True):
            candidates = encode(inputs.candidate[name])[:, :-1]
            for sequence in self.sequences:
                events = inputs.sequences[sequence]
                past = ComparedEvents(events, _encoded(encode, events.features[name]))
                found.append(next(tastes)(candidates, inputs.slots, past))
        means, variances = (torch.stack(values, dim=1) for values in zip(*found, strict=True))
        shift = means.sum(1, keepdim=True)
        return PartOutput(torch.cat([means, variances], dim=1), shift, {"vector_taste": shift.squeeze(1)})


def _weak_encoding(vector: VectorColumn, dim: int) -> VectorEncoding:
    """Its vectors begin about as long as those of titles in `TitleBag`, so that the taste says next to nothing at the start."""
    encode = VectorEncoding(vector, dim)
    nn.init.normal_(encode.project.weight, std=0.3 / (dim * vector.width) ** 0.5)
    return encode


def _encoded(encode: nn.Module, vectors: Tensor) -> Tensor:
    """(R, L, D) of vectors (R, L, width), without their flags."""
    R, L, width = vectors.shape
    encoded: Tensor = encode(vectors.reshape(R * L, width))
    return encoded[:, :-1].reshape(R, L, -1)
