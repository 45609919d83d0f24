from types import SimpleNamespace

import pytest
import torch

from prectr_torchrec.config.objective import DebiasConfig
from prectr_torchrec.modules import OtherTexts, anchor_loss, consistency_loss, grade_distributions, level_targets, weighted_mean
from prectr_torchrec.training.objectives import debias_loss, lowered_distance

PI = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])


def test_anchor_is_the_cross_entropy_of_graded_rows_alone() -> None:
    loss = anchor_loss(PI.log(), level_targets(torch.tensor([1, 0, 3]), 3))
    assert loss.item() == pytest.approx(-(torch.tensor(0.7).log() + torch.tensor(0.4).log()).item() / 2)


def test_anchor_on_grades_divides_them_between_two_levels() -> None:
    targets = grade_distributions(torch.tensor([1.25, torch.nan, 3.0]), torch.tensor([1.0, 2.0, 3.0])).nan_to_num()
    assert targets.tolist() == [[0.75, 0.25, 0], [0, 0, 0], [0, 0, 1]]
    expected = -(0.75 * PI[0, 0].log() + 0.25 * PI[0, 1].log() + PI[2, 2].log()) / 2
    assert anchor_loss(PI.log(), targets).item() == pytest.approx(expected.item())


def test_anchor_without_any_grade_is_zero_with_a_zero_gradient() -> None:
    log_pi = torch.randn(3, 4).log_softmax(1).requires_grad_()
    loss = anchor_loss(log_pi, level_targets(torch.zeros(3, dtype=torch.long), 4))
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


def output(logit: list[float], other_logit: list[float], log_pi: torch.Tensor) -> SimpleNamespace:
    """What `debias_loss` reads of a scored batch."""
    other = OtherTexts(log_pi, torch.ones(len(logit), dtype=torch.bool), torch.tensor(other_logit))
    click = SimpleNamespace(logit=torch.tensor(logit, requires_grad=True))
    return SimpleNamespace(reference_click=click, noised=other, swapped=other)


def rows(level: list[int], weight: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(level=torch.tensor(level), click_weight=torch.full((len(level),), weight))


DEBIAS = DebiasConfig(weight=1.0, negatives="noise", margin=0.5, clip=1.0, quantile=0.0)
LOG_PI = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(3, -1)


def test_lowered_copies_are_below_relevant_rows_and_above_nothing() -> None:
    torch.manual_seed(0)
    level = torch.tensor([0, 1, 2, 3, 4]).repeat(200)
    distance = lowered_distance(level, DEBIAS)
    assert distance[level < 3].eq(0).all()
    for graded in (3, 4):
        assert set(distance[level == graded].tolist()) == set(map(float, range(1, graded)))
    swapped = lowered_distance(level, DebiasConfig(negatives="swap"))
    assert (level - swapped)[level >= 3].eq(1).all()


def test_debias_hinge_golden_values() -> None:
    # margin 0.5 a level: 0.5 * 2 - (1.0 - 0.8) = 0.8; 0.5 - 3 < 0 is none; clipped at 1
    distance = torch.tensor([2.0, 1.0, 3.0])
    hinge, anchor = debias_loss(output([1.0, 3.0, 0.0], [0.8, 0.0, 4.0], LOG_PI), rows([3, 3, 4]), distance, DEBIAS)
    assert hinge.item() == pytest.approx((0.8 + 0.0 + 1.0) / 3)
    assert anchor.item() == pytest.approx(-(LOG_PI[0, 0] + LOG_PI[0, 1] + LOG_PI[0, 0]).item() / 3)  # rebuilt levels 1, 2, 1


def test_debias_leaves_out_positives_that_score_low_themselves() -> None:
    config = DEBIAS.model_copy(update={"quantile": 0.5})
    scored = output([-5.0, 1.0, 1.0], [-5.0, 1.0, 1.0], LOG_PI)
    hinge, _ = debias_loss(scored, rows([3, 3, 3]), torch.ones(3), config)
    hinge.backward()
    assert scored.reference_click.logit.grad[0] == 0 and (scored.reference_click.logit.grad[1:] < 0).all()


def test_debias_without_relevant_or_without_shown_rows_is_zero() -> None:
    for level, weight in (([0, 1, 2], 1.0), ([4, 4, 4], 0.0)):
        distance = lowered_distance(torch.tensor(level), DEBIAS)
        hinge, anchor = debias_loss(output([1.0] * 3, [1.0] * 3, LOG_PI), rows(level, weight), distance, DEBIAS)
        assert hinge.item() == 0.0 and anchor.item() == 0.0
