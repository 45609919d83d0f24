"""Features that take no learning of their own: looked-up ids, counts of the past, the reading of the texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..inputs import Inputs, Widths
from ..text.match import TextMatch
from ..text.relevance import TextReading
from .base import Given, Part, PartOutput

LOG_SCALE = 4
"""Logarithms of counts are divided by it, to lie within about one of zero."""


class LookedUpFeatures(Part):
    """The embeddings of each candidate and of its request, side by side.

    Args:
        widths: of the features; those of sequences are for the parts that attend to them.

    Example::

        part = LookedUpFeatures(Widths(request={"user_id": 4}, candidate={"item_id": 8}, sequences={}))
        inputs = Inputs(
            {"user_id": torch.randn(1, 4)}, {"item_id": torch.randn(2, 8)}, {}, {},
            request_weight=torch.ones(1), candidate_request=torch.tensor([0, 0]), candidate_weight=torch.ones(2),
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        assert part(inputs, text).features.shape == (2, part.num_features) == (2, 12)
    """

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.request, self.candidate = list(widths.request), list(widths.candidate)
        self.num_features = sum(widths.request.values()) + sum(widths.candidate.values())

    @classmethod
    def build(cls, given: Given, **settings: Any) -> LookedUpFeatures:
        """As of `Part`."""
        return cls(given.widths)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, sum of D), those of the request first."""
        found = [inputs.request[name][inputs.candidate_request] for name in self.request]
        found += [inputs.candidate[name] for name in self.candidate]
        return PartOutput(torch.cat(found, dim=1) if found else inputs.rows(()))


class PastCounts(Part):
    r"""How much past there is: of the user, of the user under the query, of others under it.

    Of a count :math:`n` the feature is :math:`\tfrac14 \log(1 + n)`, 0 where nothing is counted.

    Example::

        counts = {"user_events": 200.0, "user_query_events": 3.0, "query_events": 0.0}
        inputs = Inputs(
            {name: torch.tensor([[count]]) for name, count in counts.items()}, {}, {}, {},
            request_weight=torch.ones(1), candidate_request=torch.tensor([0, 0]), candidate_weight=torch.ones(2),
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        features = PastCounts()(inputs, text).features
        assert features.shape == (2, 3) and features[:, 2].eq(0).all()
    """

    num_features = 3

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, 3)."""
        counts = inputs.counts()[:, : self.num_features]
        return PartOutput((counts.log1p() / LOG_SCALE)[inputs.candidate_request])


class TextFeatures(Part):
    """What the relevance side says of query and title: the relevance vector and the match features.

    Args:
        relevance_dim: width of the relevance vector.
        match_dim: width of the match features.

    Example::

        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        relevance = Relevance(hidden=torch.randn(2, 8), log_pi=torch.randn(2, 4).log_softmax(1))
        text = TextReading(relevance, match=torch.rand(2, 24), pair=torch.randn(2, 32), title=torch.randn(2, 16))
        assert TextFeatures(8, 24)(inputs, text).features.shape == (2, 32)
    """

    def __init__(self, relevance_dim: int, match_dim: int) -> None:
        super().__init__()
        self.num_features = relevance_dim + match_dim

    @classmethod
    def build(cls, given: Given, **settings: Any) -> TextFeatures:
        """As of `Part`."""
        return cls(given.relevance_dim, given.match_dim)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, relevance_dim + match_dim)."""
        return PartOutput(torch.cat([text.relevance.hidden, text.match], dim=1))


class MatchFeatures(Part):
    """How the words of query and title meet, for rankers without a relevance side, which would have read them.

    Args:
        match: makes the features.

    Example::

        match = TextMatch(idf=torch.full((50,), 2.0), is_number=torch.zeros(50, dtype=torch.bool))
        texts = {
            "query": Texts(tokens=torch.tensor([[7, 8]]), rows=torch.tensor([0])),
            "title": Texts(tokens=torch.tensor([[9, 7, 8], [9, 5, 0]]), rows=torch.tensor([0, 1])),
        }
        inputs = Inputs({}, {}, {}, texts, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        assert MatchFeatures(match)(inputs, text).features.shape == (2, match.num_features)
    """

    def __init__(self, match: TextMatch) -> None:
        super().__init__()
        self.match, self.num_features = match, match.num_features

    @classmethod
    def build(cls, given: Given, **settings: Any) -> MatchFeatures:
        """As of `Part`."""
        return cls(given.match())

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, match.num_features)."""
        query, title = inputs.texts["query"], inputs.texts["title"]
        return PartOutput(self.match(query.tokens[query.rows[inputs.candidate_request]], title.tokens[title.rows]))


class TitleFeatures(Part):
    """The encoder's vector of the title alone, projected.

    Args:
        title_dim: width of the vector.
        dim: width of the projection.

    Example::

        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        relevance = Relevance(hidden=torch.randn(2, 8), log_pi=torch.randn(2, 4).log_softmax(1))
        text = TextReading(relevance, match=torch.rand(2, 24), pair=torch.randn(2, 32), title=torch.randn(2, 16))
        assert TitleFeatures(16, dim=12)(inputs, text).features.shape == (2, 12)
    """

    def __init__(self, title_dim: int, dim: int = 32) -> None:
        super().__init__()
        self.num_features = dim
        self.project = nn.Linear(title_dim, dim)

    @classmethod
    def build(cls, given: Given, **settings: Any) -> TitleFeatures | None:
        """As of `Part`."""
        return cls(given.title_dim, **settings) if given.title_dim else None

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, dim)."""
        return PartOutput(self.project(text.title))
