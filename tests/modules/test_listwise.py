import pytest
import torch
from torch import Tensor

from prectr_torchrec.modules import Inputs, Label, LabelProbability, Predictions
from prectr_torchrec.modules.losses.listwise import Listwise, log_softmax_of_requests


def inputs(candidate_request: list[int], weight: list[float]) -> Inputs:
    requests = max(candidate_request) + 1
    return Inputs({}, {}, {}, {}, torch.ones(requests), torch.tensor(candidate_request), torch.tensor(weight))


def predictions(logit: Tensor) -> Predictions:
    p = LabelProbability(torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit))
    return Predictions({"click": p}, {"click": p})


def loss(logit: Tensor, request: list[int], click: list[float], weight: list[float]) -> Tensor:
    labels = {"click": Label(torch.tensor(click).float(), torch.tensor(weight).float())}
    return Listwise()(predictions(logit), inputs(request, weight), labels)["listwise"]


def test_it_is_the_mean_over_requests_with_a_click_of_their_clicks_shares() -> None:
    logit = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, 3.0])
    found = loss(logit, [0, 0, 0, 1, 1, 2], [1, 1, 0, 0, 1, 0], [1] * 6)
    first = -logit[:3].log_softmax(0)[:2].mean()
    second = -logit[3:5].log_softmax(0)[1]
    torch.testing.assert_close(found, (first + second) / 2)


def test_padding_and_candidates_without_a_label_take_no_part() -> None:
    logit = torch.tensor([1.0, 0.0, 9.0, 9.0])
    found = loss(logit, [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0])
    torch.testing.assert_close(found, -logit[:2].log_softmax(0)[0])


@pytest.mark.parametrize(("click", "weight"), [([0.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [0.0, 0.0])])
def test_without_a_click_it_is_zero_with_a_zero_gradient(click: list[float], weight: list[float]) -> None:
    logit = torch.tensor([1.0, 2.0], requires_grad=True)
    found = loss(logit, [0, 0], click, weight)
    found.backward()
    assert found.item() == 0.0 and logit.grad is not None and logit.grad.eq(0).all()


def test_one_candidate_alone_is_sure_and_no_other_requests_score_matters() -> None:
    assert loss(torch.tensor([-4.0]), [0], [1.0], [1.0]).item() == 0.0
    scores = torch.tensor([1.0, 2.0, 3.0])
    one = log_softmax_of_requests(scores, torch.ones(3, dtype=torch.bool), inputs([0, 0, 1], [1.0] * 3))
    other = log_softmax_of_requests(
        scores + torch.tensor([0, 0, 7.0]), torch.ones(3, dtype=torch.bool), inputs([0, 0, 1], [1.0] * 3)
    )
    torch.testing.assert_close(one, other)


def test_a_request_counts_what_its_clicked_candidates_weigh() -> None:
    logit, request = torch.tensor([1.0, 0.0, 2.0, 0.5]), [0, 0, 1, 1]
    first, second = (-logit[rows].log_softmax(0)[0] for rows in (slice(0, 2), slice(2, 4)))

    def found(weights: list[float]) -> Tensor:
        label = Label(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.ones(4), torch.tensor(weights))
        return Listwise()(predictions(logit), inputs(request, [1] * 4), {"click": label})["listwise"]

    torch.testing.assert_close(found([3.0, 9.0, 1.0, 0.0]), (3 * first + second) / 4)
    torch.testing.assert_close(found([0.2] * 4), (first + second) / 2)
    assert found([0.0, 1.0, 0.0, 1.0]).item() == 0.0
