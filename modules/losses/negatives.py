"""Random negatives: a title of another request is of the lowest level."""

from __future__ import annotations

from torch import Tensor

from ..inputs import Inputs
from ..rankers.base import Predictions
from .base import Label, Loss, weighted_mean


class RandomNegatives(Loss):
    """The anchor on titles swapped within the batch, taken as level 1."""

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`random_negatives`, in training."""
        if not self.training:
            return {}
        swapped = predictions.own.swapped()
        return {"random_negatives": weighted_mean(-swapped.log_pi[:, 0], swapped.foreign.float())}
