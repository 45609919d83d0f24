"""The loss of a label: the binary cross-entropy of its probability at the logged position."""

from __future__ import annotations

from torch import Tensor

from ..inputs import Inputs
from ..rankers.base import Predictions
from .base import Label, Loss, weighted_mean


class CrossEntropy(Loss):
    r"""Binary cross-entropy, exact in log space, a mean over the rows with the label.

    With the label :math:`y`, 0 or 1, and the log probabilities :math:`\log p_1` and :math:`\log p_0` that it is 1 and 0, at the
    logged position: :math:`-(y \log p_1 + (1 - y) \log p_0)`.

    Args:
        label: its name.

    Example::

        log_p = torch.tensor([0.5, 0.5]).log()
        click = {"click": LabelProbability(log_p, log_p)}
        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        labels = {"click": Label(torch.tensor([1.0, 0.0]), weight=torch.tensor([1.0, 0.0]))}
        loss = CrossEntropy()(Predictions(click, click), inputs, labels)["bce"]
        assert torch.allclose(loss.exp(), torch.tensor(2.0))
    """

    def __init__(self, label: str = "click") -> None:
        super().__init__()
        self.label = label

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`bce` of the click, `bce_LABEL` of another label."""
        p, y = predictions.logged[self.label], labels[self.label]
        name = "bce" if self.label == "click" else f"bce_{self.label}"
        return {name: weighted_mean(-(y.value * p.log_yes + (1 - y.value) * p.log_no), y.weight)}
