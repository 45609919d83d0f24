"""Further texts of an item beside its title, such as a description: how their words meet the query's, and what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs import Inputs
from ..text.match import TextMatch
from ..text.relevance import TextReading
from .base import Given, Part, PartOutput


class FurtherMatch(Part):
    """How the words of the query meet those of further texts of an item.

    Args:
        names: of the texts.
        match: makes the features of each.

    Example::

        match = TextMatch(idf=torch.full((50,), 2.0), is_number=torch.zeros(50, dtype=torch.bool))
        texts = {
            "query": Texts(tokens=torch.tensor([[7, 8]]), rows=torch.tensor([0])),
            "description": Texts(tokens=torch.tensor([[9, 7, 8], [9, 5, 0]]), rows=torch.tensor([0, 1])),
        }
        inputs = Inputs({}, {}, {}, texts, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        part = FurtherMatch(["description"], match)
        assert part(inputs, text).features.shape == (2, part.num_features) == (2, match.num_features)
    """

    def __init__(self, names: Sequence[str], match: TextMatch) -> None:
        super().__init__()
        self.names, self.match, self.num_features = list(names), match, len(names) * match.num_features

    @classmethod
    def build(cls, given: Given, **settings: Any) -> FurtherMatch | None:
        """As of `Part`."""
        return cls(given.texts, given.match()) if given.texts else None

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, `num_features`)."""
        query, texts = inputs.texts["query"], [inputs.texts[name] for name in self.names]
        queries = query.tokens[query.rows[inputs.candidate_request]]
        return PartOutput(torch.cat([self.match(queries, of.tokens[of.rows]) for of in texts], dim=1))


class FurtherEncodings(Part):
    r"""What the text encoder makes of the query and further texts of an item, projected.

    With the features :math:`f` that a tower reads of query and title, of query :math:`q` and text :math:`d` it is
    :math:`\mathrm{relu}(W f(q, d) + b)`, for each text with weights of its own.

    Args:
        names: of the texts.
        text_dim: width of what a tower reads of a pair.
        dim: width of the projection.

    Example::

        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none, further={"description": torch.randn(2, 64)})
        assert FurtherEncodings(["description"], text_dim=64, dim=12)(inputs, text).features.shape == (2, 12)
    """

    def __init__(self, names: Sequence[str], text_dim: int, dim: int = 32) -> None:
        super().__init__()
        self.encodes, self.num_features = list(names), len(names) * dim
        self.project = nn.ModuleList(nn.Linear(text_dim, dim) for _ in names)

    @classmethod
    def build(cls, given: Given, **settings: Any) -> FurtherEncodings | None:
        """As of `Part`."""
        if not given.texts:
            return None
        if not given.text_dim:
            raise ValueError("there is no text encoder; set model.text to true, or this part to null")
        return cls(given.texts, given.text_dim, **settings)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, `num_features`)."""
        pairs = zip(self.encodes, self.project, strict=True)
        found: list[Tensor] = [project(text.further[name]).relu() for name, project in pairs]
        return PartOutput(torch.cat(found, dim=1))
