"""What every part of a ranker has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ..inputs import Inputs
from ..text.relevance import TextReading


class ReportedPart(NamedTuple):
    """What predictions, reports and explanations can say of each candidate besides its score."""

    meaning: str
    width: int = 1
    signed: bool = False


class PartOutput(NamedTuple):
    """What a part says of each candidate."""

    features: Tensor
    """(C, F) for the towers; F, the part's `num_features`, may be 0."""
    shift: Tensor | None = None
    """(C, 1) or (C, K), added to the logits."""
    report: Mapping[str, Tensor] = {}
    """(C,) or (C, n) by the names of `Part.reported`."""
    own: Any = None
    """The part's own findings, for losses that are its own."""


class Part(nn.Module):
    """A module within a ranker: features for its towers, shifts of its logits, and what it reports."""

    num_features: int
    reported: ClassVar[Mapping[str, ReportedPart]] = {}

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Of every candidate of the batch."""
        raise NotImplementedError

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters with a rate and a decay of their own, by the group's name."""
        return {}

    def attention(self, inputs: Inputs) -> dict[str, Tensor]:
        """What candidates attend to, by name: (R, H, P, L + 1) weights of H heads, P candidates of a request and its events, the
        first of nothing that fits."""
        return {}
