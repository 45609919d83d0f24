"""The log's own numbers and vectors as parts of a ranker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..inputs import Inputs
from ..numbers import NumberColumn, NumberEncoding
from ..text.relevance import TextReading
from ..vectors import VectorColumn, VectorEncoding
from .base import Given, Part, PartOutput


class Numbers(Part):
    """All declared numbers of each candidate and its request, by `NumberEncoding`.

    Args:
        numbers: what is known of each.
        encoding: `bins` or `standard`.

    Example::

        hour = NumberColumn("request", "hour", edges=[0.0, 12.0, 24.0], bins=2)
        price = NumberColumn("candidate", "price", edges=[1.0, 5.0], bins=2)
        part = Numbers([hour, price])
        inputs = Inputs(
            {"hour": torch.tensor([[6.0]])}, {"price": torch.tensor([[3.0], [torch.nan]])}, {}, {},
            request_weight=torch.ones(1), candidate_request=torch.tensor([0, 0]), candidate_weight=torch.ones(2),
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        assert part(inputs, text).features.tolist() == [[0.5, 0, 0.5, 0, 0, 0], [0.5, 0, 0, 0, 0, 1]]
    """

    def __init__(self, numbers: Sequence[NumberColumn], encoding: Literal["bins", "standard"] = "bins") -> None:
        super().__init__()
        self.encode = NumberEncoding(numbers, encoding)
        self.columns = [(number.family, number.name) for number in numbers]
        self.num_features = self.encode.num_features

    @classmethod
    def build(cls, given: Given, **settings: Any) -> Numbers | None:
        """As of `Part`."""
        return cls(given.numbers, **settings) if given.numbers else None

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, `num_features`)."""
        return PartOutput(self.encode(torch.cat([_of_candidates(inputs, *column) for column in self.columns], dim=1)))


class Vectors(Part):
    """All declared vectors of each candidate and its request, by a `VectorEncoding` each.

    Args:
        vectors: what is known of each.
        dim: features of each, without its flag.

    Example::

        part = Vectors([VectorColumn("candidate", "image", 2, [0.0, 0.0], [1.0, 1.0])], dim=4)
        inputs = Inputs(
            {}, {"image": torch.tensor([[3.0, 1.0], [torch.nan, torch.nan]])}, {}, {},
            request_weight=torch.ones(1), candidate_request=torch.tensor([0, 0]), candidate_weight=torch.ones(2),
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        assert part(inputs, text).features[1].tolist() == [0, 0, 0, 0, 1]
    """

    def __init__(self, vectors: Sequence[VectorColumn], dim: int = 16) -> None:
        super().__init__()
        self.encode = nn.ModuleList(VectorEncoding(vector, dim) for vector in vectors)
        self.columns = [(vector.family, vector.name) for vector in vectors]
        self.num_features = len(vectors) * (dim + 1)

    @classmethod
    def build(cls, given: Given, **settings: Any) -> Vectors | None:
        """As of `Part`."""
        return cls(given.vectors, **settings) if given.vectors else None

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, `num_features`)."""
        found = [encode(_of_candidates(inputs, *column)) for encode, column in zip(self.encode, self.columns, strict=True)]
        return PartOutput(torch.cat(found, dim=1))


def _of_candidates(inputs: Inputs, family: str, name: str) -> Tensor:
    """(C, D) of each candidate, its own or that of its request."""
    return inputs.candidate[name] if family == "candidate" else inputs.request[name][inputs.candidate_request]
