"""Random negatives: a title of another request is of the lowest level."""

from __future__ import annotations

from torch import Tensor

from ..inputs import Inputs
from ..rankers.base import Predictions
from .base import Label, Loss, weighted_mean


class RandomNegatives(Loss):
    r"""The anchor on titles swapped within the batch, taken as level 1.

    With the probability :math:`\tilde \pi_1` of the lowest level for a query under a title of another request,
    :math:`-\log \tilde \pi_1`, mean over the candidates with such a title. Re-derived here: logged rows are mostly relevant.
    Of a model's findings it reads `swapped()`.

    Example::

        from types import SimpleNamespace

        log_pi = torch.tensor([[0.8, 0.2], [0.5, 0.5]]).log()
        swapped = OtherTexts(log_pi, foreign=torch.tensor([True, False]), logit=torch.zeros(2))
        findings = SimpleNamespace(swapped=lambda: swapped)
        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        loss = RandomNegatives()(Predictions({}, {}, own=findings), inputs, labels={})["random_negatives"]
        assert torch.allclose((-loss).exp(), torch.tensor(0.8))
    """

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`random_negatives`, in training."""
        if not self.training:
            return {}
        swapped = predictions.own.swapped()
        return {"random_negatives": weighted_mean(-swapped.log_pi[:, 0], swapped.foreign.float())}
