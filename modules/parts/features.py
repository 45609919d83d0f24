"""Features that take no learning of their own: looked-up ids, counts of the past, the reading of the texts."""

from __future__ import annotations

import torch
from torch import nn

from ..inputs import Inputs, Widths
from ..text.relevance import TextReading
from .base import Part, PartOutput

LOG_SCALE = 4
"""Logarithms of counts are divided by it, to lie within about one of zero."""


class LookedUpFeatures(Part):
    """The embeddings of each candidate and of its request, side by side.

    Args:
        widths: of the features; those of sequences are for the parts that attend to them.
    """

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.request, self.candidate = list(widths.request), list(widths.candidate)
        self.num_features = sum(widths.request.values()) + sum(widths.candidate.values())

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, sum of D), those of the request first."""
        found = [inputs.request[name][inputs.candidate_request] for name in self.request]
        found += [inputs.candidate[name] for name in self.candidate]
        return PartOutput(torch.cat(found, dim=1) if found else inputs.rows(()))


class PastCounts(Part):
    """How much past there is: of the user, of the user under the query, of others under it, as logarithms."""

    num_features = 3

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, 3)."""
        counts = inputs.counts()[:, : self.num_features]
        return PartOutput((counts.log1p() / LOG_SCALE)[inputs.candidate_request])


class TextFeatures(Part):
    """What the relevance side says of query and title: the relevance vector and the match features.

    Args:
        relevance_dim: width of the relevance vector.
        match_dim: of the match features.
    """

    def __init__(self, relevance_dim: int, match_dim: int) -> None:
        super().__init__()
        self.num_features = relevance_dim + match_dim

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, relevance_dim + match_dim)."""
        return PartOutput(torch.cat([text.relevance.hidden, text.match], dim=1))


class TitleFeatures(Part):
    """The encoder's vector of the title alone, projected.

    Args:
        title_dim: width of the vector.
        dim: width of the projection.
    """

    def __init__(self, title_dim: int, dim: int = 32) -> None:
        super().__init__()
        self.num_features = dim
        self.project = nn.Linear(title_dim, dim)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, dim)."""
        return PartOutput(self.project(text.title))
