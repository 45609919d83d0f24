"""What losses share."""

from __future__ import annotations

from torch import Tensor


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over rows of weight 1; zero, with a gradient of zero, where there are none.

    Args:
        values: (C,) float.
        weight: (C,) float, 1 or 0.

    Returns:
        A float scalar.

    Example::

        assert weighted_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([1.0, 1.0, 0.0])).item() == 2.0
    """
    return (values * weight).sum() / weight.sum().clamp(min=1.0)
