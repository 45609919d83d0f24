"""Vectors that come ready made, such as those of an image: standardised, projected; missing ones say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .numbers import FARTHEST


class VectorColumn(NamedTuple):
    """A vector that `Inputs` has as (R, width) or (C, width), NaN where it is missing, and what the train part tells of it."""

    family: Literal["request", "candidate"]
    """Whose it is."""
    name: str
    """In `Inputs`."""
    width: int
    """How many numbers it has."""
    mean: Sequence[float] | None = None
    """(width,) of each of its numbers. None: not known, weights that are loaded bring it."""
    deviation: Sequence[float] | None = None
    """(width,) of each of its numbers, positive; as of `mean`."""
    history: bool = False
    """Whether past events have it too, as (R, L, width)."""


class VectorEncoding(nn.Module):
    r"""Features of a vector: its standardised numbers, projected, and a flag of 1 where it is missing.

    .. math:: f(x) = W \min(10, \max(-10, (x - \mu) / \sigma))

    number by number. A missing vector counts as the mean: its features are zeros, but for the flag.

    Args:
        vector: what is known of it.
        dim: D, features without the flag.

    Attributes:
        num_features: D + 1.

    Example::

        encode = VectorEncoding(VectorColumn("candidate", "image", width=3, mean=[1.0, 0, 0], deviation=[2.0, 1, 1]), dim=2)
        features = encode(torch.tensor([[1.0, 0.0, 0.0], [torch.nan] * 3, [3.0, 2.0, -1.0]]))
        assert features.shape == (3, 3) and features[:2].tolist() == [[0, 0, 0], [0, 0, 1]]
    """

    def __init__(self, vector: VectorColumn, dim: int) -> None:
        super().__init__()
        unknown = [torch.nan] * vector.width
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(unknown if vector.mean is None else [*vector.mean]))
        self.register_buffer("deviation", torch.tensor(unknown if vector.deviation is None else [*vector.deviation]))
        self.project = nn.Linear(vector.width, dim, bias=False)
        self.num_features = dim + 1

    def forward(self, values: Tensor) -> Tensor:
        """Encodes vectors.

        Args:
            values: (n, width) float, all NaN where missing.

        Returns:
            (n, D + 1) float.
        """
        missing = values[:, :1].isnan()
        standard = ((values - self.mean) / self.deviation).clamp(-FARTHEST, FARTHEST)
        return torch.cat([self.project(standard.masked_fill(missing, 0.0)), missing.to(values.dtype)], dim=1)
