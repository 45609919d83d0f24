"""List-wise loss: which of a request's candidates was clicked."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import Inputs
from ..rankers.base import Predictions
from .base import Label, Loss, weighted_mean


class Listwise(Loss):
    r"""Softmax cross-entropy over the candidates of a request (ListNet, Cao et al., ICML 2007, with clicks as relevance).

    With the logits :math:`z_c` and labels :math:`y_c` of the candidates :math:`c` of a request, it is
    :math:`-\sum_c y_c \log \mathrm{softmax}(z)_c / \sum_c y_c`, a mean over the requests that have a positive label. It orders
    candidates and says nothing of probabilities: keep the cross-entropy beside it.

    With sample weights a request counts as much as its positive candidates do on average, against the others of the batch.

    Args:
        label: its name.

    Example::

        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        p = LabelProbability(torch.tensor([0.8, 0.5]).log(), torch.tensor([0.2, 0.5]).log())  # logits log 4 and 0
        label = Label(torch.tensor([1.0, 0.0]), torch.ones(2))
        loss = Listwise()(Predictions({"click": p}, {"click": p}), inputs, {"click": label})["listwise"]
        assert torch.allclose(loss.exp(), torch.tensor(5 / 4))
    """

    def __init__(self, label: str = "click") -> None:
        super().__init__()
        self.label = label

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`listwise`."""
        y = labels[self.label]
        log_share = log_softmax_of_requests(predictions.logged[self.label].logit, y.weight > 0, inputs)
        positive = y.weight * y.value

        def of_requests(values: Tensor) -> Tensor:
            return torch.zeros_like(inputs.request_weight).index_add(0, inputs.candidate_request, values)

        positives, counts = of_requests(positive), torch.ones_like(inputs.request_weight[0])
        if y.sample_weight is not None:
            positive = positive * y.sample_weight
            count = of_requests(positive) / positives.clamp(min=1.0)
            counts = (positives > 0).sum() / count.sum().clamp(min=torch.finfo(count.dtype).tiny)
        loss = of_requests(-positive * log_share) / positives.clamp(min=1.0)
        return {"listwise": weighted_mean(loss * counts, (positives > 0).float())}


def log_softmax_of_requests(scores: Tensor, rows: Tensor, inputs: Inputs) -> Tensor:
    """Log softmax of each candidate's score among those of its request.

    Args:
        scores: (C,) float.
        rows: (C,) bool, the candidates that take part.
        inputs: of the batch.

    Returns:
        (C,) float, 0 for candidates that take no part.

    Example::

        inputs = Inputs({}, {}, {}, {}, torch.ones(2), torch.tensor([0, 0, 1]), torch.ones(3))
        found = log_softmax_of_requests(torch.zeros(3), torch.ones(3, dtype=torch.bool), inputs)
        assert torch.allclose(found.exp(), torch.tensor([0.5, 0.5, 1.0]))
    """
    lowest = torch.finfo(scores.dtype).min
    slots = inputs.slots.scatter(torch.stack([scores.masked_fill(~rows, 0.0), rows.to(scores.dtype)], dim=1))  # (R, P, 2)
    shares = slots[..., 0].masked_fill(slots[..., 1] == 0, lowest).log_softmax(1).unsqueeze(2)
    return inputs.slots.gather(shares).squeeze(1).masked_fill(~rows, 0.0)
