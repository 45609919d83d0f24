"""Joint ranking and calibration: within a request, clicked candidates stand out from the others, and the others from them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import Inputs
from ..rankers.base import Predictions
from .base import Label, Loss, label_mean
from .listwise import log_softmax_of_requests


class JointRankingCalibration(Loss):
    r"""The generative half of JRC (arXiv 2208.06164), to stand beside the cross-entropy, which is its discriminative half.

    With a logit :math:`f_y(x)` for each value :math:`y` of the label, a candidate :math:`x` among the candidates :math:`X` of
    its request adds :math:`-\log(e^{f_y(x)} / \sum_{x' \in X} e^{f_y(x')})`: of those with its label it should be likely. The
    paper's two logits are free; here they are :math:`f_1 = \log p_1` and :math:`f_0 = \log p_0` of the ranker's probability,
    whose difference is the logit, so that any ranker can be trained with it. A mean over the candidates with the label, by their
    sample weights.

    Args:
        label: its name.

    Example::

        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        p = LabelProbability(torch.tensor([0.75, 0.25]).log(), torch.tensor([0.25, 0.75]).log())
        label = Label(torch.tensor([1.0, 0.0]), torch.ones(2))
        loss = JointRankingCalibration()(Predictions({"click": p}, {"click": p}), inputs, {"click": label})["jrc"]
        assert torch.allclose(loss.exp(), torch.tensor(4 / 3))
    """

    def __init__(self, label: str = "click") -> None:
        super().__init__()
        self.label = label

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`jrc`."""
        p, y = predictions.logged[self.label], labels[self.label]
        clicked, skipped = (log_softmax_of_requests(f, y.weight > 0, inputs) for f in (p.log_yes, p.log_no))
        return {"jrc": label_mean(-torch.where(y.value > 0, clicked, skipped), y)}
