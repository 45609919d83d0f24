import torch
from torch import Tensor
from torch.nn import functional as F

from prectr_torchrec.modules import Inputs, Label, LabelProbability, Predictions
from prectr_torchrec.modules.losses.jrc import JointRankingCalibration


def loss(logit: Tensor, request: list[int], click: list[float], weight: list[float]) -> Tensor:
    inputs = Inputs({}, {}, {}, {}, torch.ones(max(request) + 1), torch.tensor(request), torch.ones(len(request)))
    p = LabelProbability(F.logsigmoid(logit), F.logsigmoid(-logit))
    labels = {"click": Label(torch.tensor(click).float(), torch.tensor(weight).float())}
    return JointRankingCalibration()(Predictions({"click": p}, {"click": p}), inputs, labels)["jrc"]


def test_each_candidate_is_likely_among_those_of_its_request_for_its_label() -> None:
    logit = torch.tensor([1.0, -0.5, 0.3, 2.0])
    found = loss(logit, [0, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1])
    clicked, skipped = F.logsigmoid(logit[:3]).log_softmax(0), F.logsigmoid(-logit[:3]).log_softmax(0)
    torch.testing.assert_close(found, -(clicked[0] + skipped[1] + skipped[2] + 0.0) / 4)  # alone, a candidate is sure


def test_candidates_without_a_label_take_no_part() -> None:
    logit = torch.tensor([1.0, -0.5, 9.0])
    torch.testing.assert_close(loss(logit, [0, 0, 0], [1, 0, 1], [1, 1, 0]), loss(logit[:2], [0, 0], [1, 0], [1, 1]))


def test_without_labels_it_is_zero_with_a_zero_gradient() -> None:
    logit = torch.tensor([1.0, 2.0], requires_grad=True)
    found = loss(logit, [0, 0], [1, 0], [0, 0])
    found.backward()
    assert found.item() == 0.0 and logit.grad is not None and logit.grad.eq(0).all()
