"""The log's own numbers as a part of a ranker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from ..inputs import Inputs
from ..numbers import NumberColumn, NumberEncoding
from ..text.relevance import TextReading
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
        found = [
            inputs.candidate[name] if family == "candidate" else inputs.request[name][inputs.candidate_request]
            for family, name in self.columns
        ]
        return PartOutput(self.encode(torch.cat(found, dim=1)))
