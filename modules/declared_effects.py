"""The log's own numbers and vectors in mixed effects: what they are worth to all, and what single users' coefficients are of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .inputs import Inputs
from .numbers import NumberColumn, NumberEncoding
from .parts.declared import Numbers, Vectors
from .text.relevance import TextReading

WEIGHT_SD, COORDINATE_SD = 0.2, 0.3
"""Of the prior of weights; and of that of single users' coefficients at the start, from where clicks teach it."""


class DeclaredFound(NamedTuple):
    """Of each candidate."""

    to_all: Tensor
    """(C,) what its columns add to the logit, whoever asks."""
    coordinates: Tensor
    """(C, n) what coefficients are multiplied with."""
    divergence: Tensor
    """Scalar, each candidate's share of how far the weights are from their prior."""


class DeclaredEffects(nn.Module):
    r"""A linear function of the features of `Numbers` and `Vectors`, and n coordinates of each candidate.

    The features are those of the candidate and its request. Their weights begin at zero and have the prior :math:`N(0, 0.2^2)`,
    which keeps neighbouring bins alike; it is spread over the candidates of the train part. Coordinates are of candidates alone,
    since what is the same for all of a request ranks nothing: the standardised number, zero where it is missing, and the
    projected vector. So a user's coefficients say what this user minds of prices, beside what prices are to all.

    Args:
        numbers: part of the declared numbers; None: there are none.
        columns: what is known of these numbers.
        vectors: part of the declared vectors; None: there are none.

    Attributes:
        num_coordinates: n.
        names: of the numbers, whose coordinates are the first ones.

    Example::

        price = NumberColumn("candidate", "price", edges=[1.0, 5.0], bins=2, mean=3.0, deviation=2.0)
        declared = DeclaredEffects(Numbers([price]), [price])
        inputs = Inputs(
            {}, {"price": torch.tensor([[5.0], [torch.nan]])}, {}, {},
            request_weight=torch.ones(1), candidate_request=torch.tensor([0, 0]), candidate_weight=torch.ones(2),
        )
        found = declared(inputs, TextReading.of_nothing(torch.ones(2)))
        assert found.to_all.tolist() == [0.0, 0.0] and found.coordinates.tolist() == [[1.0], [0.0]]
    """

    def __init__(self, numbers: Numbers | None, columns: Sequence[NumberColumn], vectors: Vectors | None = None) -> None:
        super().__init__()
        self.numbers, self.vectors = numbers, vectors
        own = [column for column in columns if column.family == "candidate"] if numbers is not None else []
        self.names = [column.name for column in own]
        self.standard = NumberEncoding(own, "standard") if own else None
        of_candidates = [family == "candidate" for family, _ in vectors.columns] if vectors is not None else []
        self._own = [place for place, own in enumerate(of_candidates) if own]
        dim = vectors.num_features // len(of_candidates) - 1 if vectors is not None else 0
        self.candidates: Tensor
        self.register_buffer("candidates", torch.tensor(1.0))
        self.num_coordinates = len(self.names) + dim * len(self._own)
        self.weight = nn.Parameter(torch.zeros(sum(part.num_features for part in (numbers, vectors) if part is not None)))

    def forward(self, inputs: Inputs, text: TextReading) -> DeclaredFound:
        """What is found of each candidate; arguments as of `Part`."""
        features, coordinates = [], []
        if self.numbers is not None:
            features.append(self.numbers(inputs, text).features)
        if self.standard is not None:
            values = self.standard(torch.cat([inputs.candidate[name] for name in self.names], dim=1))
            coordinates.append(values[:, : len(self.names)])
        if self.vectors is not None:
            found = self.vectors(inputs, text).features
            features.append(found)
            each = found.unflatten(1, (len(self.vectors.columns), -1))[:, :, :-1]  # without flags
            coordinates.append(each[:, self._own].flatten(1))
        to_all = torch.cat(features, dim=1) @ self.weight
        divergence = (self.weight / WEIGHT_SD).square().sum() / (2 * self.candidates)
        return DeclaredFound(to_all, torch.cat(coordinates, dim=1) if coordinates else inputs.rows(()), divergence)
