"""What losses share."""

from __future__ import annotations

from torch import Tensor


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over rows of weight 1; zero, with a gradient of zero, where there are none."""
    return (values * weight).sum() / weight.sum().clamp(min=1.0)
