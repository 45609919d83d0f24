"""Numeric features: quantile bins with a piecewise linear encoding, or standardised; missing ones say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

FARTHEST = 10.0
"""Deviations from the mean at which a standardised number is held."""


class NumberColumn(NamedTuple):
    """A number that `Inputs` has as (R, 1) or (C, 1), NaN where it is missing, and what the train part tells of it."""

    family: Literal["request", "candidate"]
    """Whose it is."""
    name: str
    """In `Inputs`."""
    logarithmic: bool = False
    """It is seen as `sign(x) log(1 + |x|)`."""
    bins: int = 16
    """Quantile bins at most."""
    edges: Sequence[float] | None = None
    """The quantiles that bound the bins, ascending, of the number as it is; fewer where values repeat, none where all are
    missing. None: not known, weights that are loaded bring them."""
    mean: float = 0.0
    """Of the number as it is seen."""
    deviation: float = 1.0
    """Of the number as it is seen, positive."""


class NumberEncoding(nn.Module):
    r"""Features of numbers that a linear layer can bend.

    Piecewise linear encoding (Gorishniy et al., arXiv 2203.05556; re-derived here). Let :math:`b_0 < b_1 < ... < b_T` be
    quantiles of a number in the train part and :math:`x` a value, both as they are seen. Bin :math:`t = 1..T` tells how much of
    it lies below the value,

    .. math:: e_t(x) = \min\left(1, \max\left(0, \frac{x - b_{t-1}}{b_t - b_{t-1}}\right)\right).

    Unlike there, the outer bins are held too: a value beyond all that was trained on counts as the farthest of these. `standard`
    gives :math:`(x - \mu) / \sigma` instead, held at 10. A missing number gives zeros and a flag of 1.

    Args:
        numbers: what is known of each; bins that a number has not stay zero.
        encoding: `bins` or `standard`.

    Attributes:
        num_features: features of all numbers, flags last.

    Example::

        price = NumberColumn("candidate", "price", edges=[0.0, 10.0, 30.0], bins=2)
        encode = NumberEncoding([price])
        features = encode(torch.tensor([[5.0], [20.0], [99.0], [torch.nan]]))
        assert features.tolist() == [[0.5, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    def __init__(self, numbers: Sequence[NumberColumn], encoding: Literal["bins", "standard"] = "bins") -> None:
        super().__init__()
        self.encoding = encoding
        width = max(number.bins for number in numbers) if encoding == "bins" else 1
        self.num_features = len(numbers) * (width + 1)
        self.logarithmic: Tensor
        self.register_buffer("logarithmic", torch.tensor([number.logarithmic for number in numbers]), persistent=False)
        self.edges: Tensor  # (N, T + 1), or the mean and what is a deviation above it
        rows = [_padded(number, width) if encoding == "bins" else _mean_and_deviation(number) for number in numbers]
        self.register_buffer("edges", torch.stack(rows))

    def forward(self, values: Tensor) -> Tensor:
        """Encodes numbers.

        Args:
            values: (n, N) float, NaN where missing.

        Returns:
            (n, N T + N) float, or (n, 2 N) standardised.
        """
        missing = values.isnan()
        x = values.masked_fill(missing, 0.0)
        x = torch.where(self.logarithmic, _log(x), x).unsqueeze(2)  # (n, N, 1)
        lower, widths = self.edges[:, :-1], self.edges.diff(dim=1)  # (N, T)
        # a bin that the number has not is 0 wide
        share = torch.where(widths == 0, torch.zeros_like(widths), (x - lower) / torch.where(widths == 0, 1.0, widths))
        least, most = (0.0, 1.0) if self.encoding == "bins" else (-FARTHEST, FARTHEST)
        share = share.clamp(least, most).masked_fill(missing.unsqueeze(2), 0.0)
        return torch.cat([share.flatten(1), missing.to(values.dtype)], dim=1)


def _log(x: Tensor) -> Tensor:
    return x.sign() * x.abs().log1p()


def _padded(number: NumberColumn, bins: int) -> Tensor:
    """(bins + 1,) edges as the number is seen, the last one again where there are fewer; NaN where they are not known."""
    if number.edges is None:
        return torch.full((bins + 1,), torch.nan)
    edges = torch.tensor([*number.edges] or [0.0])
    edges = torch.cat([edges, edges[-1:].expand(bins + 1 - len(edges))])
    return _log(edges) if number.logarithmic else edges


def _mean_and_deviation(number: NumberColumn) -> Tensor:
    mean, deviation = (number.mean, number.deviation) if number.edges is not None else (torch.nan, torch.nan)
    return torch.tensor([mean, mean + deviation])
