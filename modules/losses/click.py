"""The loss of a label: the binary cross-entropy of its probability at the logged position."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import Inputs
from ..rankers.base import Predictions
from .base import Label, Loss, label_mean


class CrossEntropy(Loss):
    r"""Binary cross-entropy, exact in log space, a mean over the rows with the label, by their sample weights.

    With the label :math:`y`, 0 or 1, and the log probabilities :math:`\log p_1` and :math:`\log p_0` that it is 1 and 0, at the
    logged position: :math:`-(y \log p_1 + (1 - y) \log p_0)`.

    Of a label that follows another one, what the other one's own loss does not tell yet: where that is 1, with its probability
    :math:`p` and :math:`p_s` that it is 1 and this one is 0, :math:`-(y \log p_1 + (1 - y) \log p_s - \log p)`, and nothing where
    it is 0. The losses of a chain then add up to the likelihood of how far along it things went. Where the other one is not
    known, or is 0 and this one is 1, it is the loss as above.

    Args:
        label: its name.
        after: what comes before it; None: nothing does.

    Example::

        log_p = torch.tensor([0.5, 0.5]).log()
        click = {"click": LabelProbability(log_p, log_p)}
        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        labels = {"click": Label(torch.tensor([1.0, 0.0]), weight=torch.tensor([1.0, 0.0]))}
        loss = CrossEntropy()(Predictions(click, click), inputs, labels)["bce"]
        assert torch.allclose(loss.exp(), torch.tensor(2.0))
    """

    def __init__(self, label: str = "click", after: str | None = None) -> None:
        super().__init__()
        self.label, self.after = label, after

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`bce` of the click, `bce_LABEL` of another label."""
        p, y = predictions.logged[self.label], labels[self.label]
        loss = -(y.value * p.log_yes + (1 - y.value) * p.log_no)
        if self.after is None:
            return {"bce": label_mean(loss, y)}
        assert p.log_stop is not None
        before, of_before = labels[self.after], predictions.logged[self.after]
        further = of_before.log_yes - y.value * p.log_yes - (1 - y.value) * p.log_stop
        told = (before.weight > 0) & (before.value >= y.value)  # else the log contradicts itself
        loss = torch.where(told, before.value * further, loss)
        return {f"bce_{self.label}": label_mean(loss, y)}
