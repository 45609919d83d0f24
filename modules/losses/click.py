"""The loss of a label: the binary cross-entropy of its probability at the logged position."""

from __future__ import annotations

from torch import Tensor

from ..inputs import Inputs
from ..rankers.base import Predictions
from .base import Label, Loss, weighted_mean


class CrossEntropy(Loss):
    r"""Binary cross-entropy :math:`-(y \log p_1 + (1 - y) \log p_0)`, exact in log space, a mean over the rows with the label.

    Args:
        label: its name.
    """

    def __init__(self, label: str = "click") -> None:
        super().__init__()
        self.label = label

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`bce`."""
        p, y = predictions.logged[self.label], labels[self.label]
        return {"bce": weighted_mean(-(y.value * p.log_click + (1 - y.value) * p.log_no_click), y.weight)}
