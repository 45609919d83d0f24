"""Semantic consistency: levels and click probabilities in one order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..inputs import Inputs
from ..rankers.base import Predictions
from .base import Label, Loss, weighted_mean


class Consistency(Loss):
    """Semantic consistency of the click logits by level.

    See `consistency_loss`. Of a model's findings it reads `level_logits`.

    Args:
        margin: in probability.

    Example::

        from types import SimpleNamespace

        findings = SimpleNamespace(level_logits=torch.tensor([[-2.0, 0.0, 1.0], [-1.0, 0.0, 2.0]]))  # in order
        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        labels = {"click": Label(torch.zeros(2), torch.ones(2))}
        assert Consistency()(Predictions({}, {}, own=findings), inputs, labels)["consistency"] == 0
    """

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`consistency`, where there are levels."""
        z = predictions.own.level_logits
        return {"consistency": consistency_loss(z, labels["click"].weight, self.margin)} if z.shape[1] > 1 else {}


def consistency_loss(level_logits: Tensor, weight: Tensor, margin: float) -> Tensor:
    r"""Semantic consistency: a higher level never has the lower click probability.

    With the click logit :math:`z_k` at level :math:`k = 1..K` and a margin :math:`\mu`, the mean over :math:`k < K` of
    :math:`\max(0, \mu + \sigma(z_k) - \sigma(z_{k + 1}))`, mean over the candidates. The papers (arXiv 2503.18395, 2602.20676)
    name it; this form, a hinge on neighbouring levels, is re-derived here.

    Args:
        level_logits: (C, K) float.
        weight: (C,) float, 1, or 0 for padding.
        margin: in probability.

    Returns:
        A float scalar.

    Example::

        z = torch.tensor([[-2.0, 0.0, 1.0], [1.0, 0.0, -2.0]])  # in order, and against it
        in_order, against = (consistency_loss(z, weight, margin=0.0) for weight in torch.eye(2))
        assert in_order == 0 < against
    """
    probability = torch.sigmoid(level_logits)
    return weighted_mean(F.relu(margin + probability[:, :-1] - probability[:, 1:]).mean(1), weight)
