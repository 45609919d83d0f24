"""What every term of the loss has in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..inputs import Inputs
from ..inputs import Label as Label
from ..rankers.base import Predictions


class Loss(nn.Module):
    """From predictions and labels to terms of the loss, which the task adds up and weighs together.

    Example::

        class Brier(Loss):  # the squared error of the click probability
            def forward(self, predictions, inputs, labels):
                error = predictions.logged["click"].log_yes.exp() - labels["click"].value
                return {"brier": weighted_mean(error.square(), labels["click"].weight)}

        log_p = torch.tensor([0.5, 0.5]).log()
        click = {"click": LabelProbability(log_p, log_p)}
        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        labels = {"click": Label(torch.tensor([1.0, 0.0]), torch.ones(2))}
        assert Brier()(Predictions(click, click), inputs, labels)["brier"].item() == 0.25
    """

    @classmethod
    def build(cls, level_grades: list[float], **settings: Any) -> Loss:
        """The loss with its settings; `level_grades`: (K,) the grade that stands for each level."""
        return cls(**settings)

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """Scalars by name.

        Args:
            predictions: of a ranker.
            inputs: of the batch, with grades that the ranker may not have seen.
            labels: by name.
        """
        raise NotImplementedError


def label_mean(values: Tensor, label: Label) -> Tensor:
    """Mean over the rows with a label of what each adds to the loss, times its sample weight.

    It divides by the number of rows and not by the sum of their weights, so that its expectation over batches is that of the
    weighted rows, however few a batch has.

    Args:
        values: (C,) float.
        label: of the rows.

    Returns:
        A float scalar; zero, with a gradient of zero, where no row has a label.

    Example::

        label = Label(torch.zeros(3), weight=torch.tensor([1.0, 1.0, 0.0]), sample_weight=torch.tensor([0.5, 1.5, 9.0]))
        assert label_mean(torch.tensor([1.0, 3.0, 9.0]), label).item() == 2.5
    """
    return weighted_mean(values if label.sample_weight is None else values * label.sample_weight, label.weight)


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
