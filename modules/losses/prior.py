"""The prior of mixed effects: how far rows are from it."""

from __future__ import annotations

from torch import Tensor

from ..inputs import Inputs
from ..rankers.base import Predictions
from .base import Label, Loss, label_mean


class Prior(Loss):
    r"""Each row's divergence from its prior, spread over the row's occurrences in the train part.

    With the rows :math:`n` that a candidate looks up, their divergences :math:`D_n` and occurrences :math:`N_n`, it is the mean
    of :math:`\sum_n D_n / N_n` over the candidates with a click label. Over an epoch each row's divergence counts once: with the
    mean cross-entropy it makes the negative evidence lower bound, by candidate. Of a model's findings it reads `divergence`.

    Example::

        from types import SimpleNamespace

        findings = SimpleNamespace(divergence=torch.tensor([0.5, 1.5, 9.0]))
        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0, 0]), torch.ones(3))
        labels = {"click": Label(torch.zeros(3), weight=torch.tensor([1.0, 1.0, 0.0]))}
        assert Prior()(Predictions({}, {}, own=findings), inputs, labels)["prior"].item() == 1.0
    """

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`prior`, in training."""
        if not self.training:
            return {}
        return {"prior": label_mean(predictions.own.divergence, labels["click"])}
