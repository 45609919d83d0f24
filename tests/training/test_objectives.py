import pytest
import torch

from prectr_torchrec.training.objectives import anchor_loss, consistency_loss, weighted_mean


def test_anchor_is_the_cross_entropy_of_graded_rows_alone() -> None:
    pi = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    loss = anchor_loss(pi.log(), torch.tensor([1, 0, 3]))
    assert loss.item() == pytest.approx(-(torch.tensor(0.7).log() + torch.tensor(0.4).log()).item() / 2)


def test_anchor_without_any_grade_is_zero_with_a_zero_gradient() -> None:
    log_pi = torch.randn(3, 4).log_softmax(1).requires_grad_()
    loss = anchor_loss(log_pi, torch.zeros(3, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0 and log_pi.grad is not None and log_pi.grad.eq(0).all()


def test_consistency_is_zero_where_levels_are_in_order() -> None:
    z = torch.tensor([[-2.0, -1.0, 0.5, 2.0]])
    assert consistency_loss(z, torch.ones(1), 0.0).item() == 0.0
    assert consistency_loss(z, torch.ones(1), 0.3).item() > 0.0


def test_consistency_golden_value_and_padding() -> None:
    z = torch.tensor([[0.0, torch.tensor(0.25).logit().item(), 0.0], [9.0, -9.0, 9.0]])
    # first row: 0.5 -> 0.25 -> 0.5: one violation of 0.25 among two neighbours; the second row is padding
    assert consistency_loss(z, torch.tensor([1.0, 0.0]), 0.0).item() == pytest.approx(0.125)


def test_consistency_pushes_the_levels_apart_in_the_right_direction() -> None:
    z = torch.tensor([[1.0, -1.0]], requires_grad=True)
    consistency_loss(z, torch.ones(1), 0.0).backward()
    assert z.grad is not None and z.grad[0, 0] > 0 > z.grad[0, 1]


def test_weighted_mean_of_no_row_is_zero() -> None:
    assert weighted_mean(torch.ones(3), torch.zeros(3)).item() == 0.0
