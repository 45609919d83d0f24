import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from inputs_by_hand import inputs_by_hand
from torch import Tensor
from torch.nn import functional as F

from prectr_torchrec.modules import (
    CrossEntropy,
    Debias,
    Inputs,
    Label,
    LabelProbability,
    OtherTexts,
    Predictions,
    anchor_loss,
    consistency_loss,
    grade_distributions,
    level_targets,
    lowered_distance,
    weighted_mean,
)
from prectr_torchrec.modules.losses import debias

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


def test_the_gradient_of_kept_rows_by_their_weights_is_that_of_all_rows_in_expectation() -> None:
    share, clicks = 0.25, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    logit = torch.tensor([0.3, -1.0, 0.5, 2.0, -0.7], requires_grad=True)

    def gradient(rows: list[int], weights: Tensor) -> Tensor:
        p = LabelProbability(F.logsigmoid(logit[rows]), F.logsigmoid(-logit[rows]))
        label = Label(clicks[rows], torch.ones(len(rows)), weights)
        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.zeros(len(rows)).long(), torch.ones(len(rows)))
        loss = CrossEntropy()(Predictions({"click": p}, {"click": p}), inputs, {"click": label})["bce"]
        (found,) = torch.autograd.grad(loss, logit)
        return found

    whole, expected = gradient([0, 1, 2, 3, 4], torch.ones(5)), torch.zeros(5)
    for drawn in itertools.product([False, True], repeat=3):
        rows = [0, 1, *(2 + number for number, is_kept in enumerate(drawn) if is_kept)]
        chance = share ** sum(drawn) * (1 - share) ** (3 - sum(drawn))
        weights = torch.where(clicks[rows] == 1, 1.0, 1 / share)
        epoch = sum(gradient([row], weight.view(1)) for row, weight in zip(rows, weights, strict=True))  # batches of one
        torch.testing.assert_close(epoch, gradient(rows, weights) * len(rows))  # and one of all
        expected = expected + chance * epoch
    torch.testing.assert_close(expected, whole * 5)


def test_weighted_mean_of_no_row_is_zero() -> None:
    assert weighted_mean(torch.ones(3), torch.zeros(3)).item() == 0.0


@dataclass
class Copies:
    """Findings whose lowered copies are given."""

    other: OtherTexts

    def swapped(self) -> OtherTexts:
        return self.other

    def noised(self, scale: Tensor) -> OtherTexts:
        return self.other


def predictions(logit: Tensor, other_logit: list[float], log_pi: Tensor) -> Predictions:
    """What `Debias` reads of a scored batch."""
    own = Copies(OtherTexts(log_pi, torch.ones(len(logit), dtype=torch.bool), torch.tensor(other_logit)))
    ranking = {"click": LabelProbability(logit.sigmoid().log(), (-logit).sigmoid().log())}
    return Predictions(ranking, ranking, own=own)


def graded(level: list[int]) -> Inputs:
    inputs = inputs_by_hand(2)
    return replace(inputs, candidate={**inputs.candidate, "level": torch.tensor(level)})


def clicks(rows: int, weight: float = 1.0) -> dict[str, Label]:
    return {"click": Label(torch.zeros(rows), torch.full((rows,), weight))}


LOG_PI = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(3, -1)


@pytest.fixture
def distances(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Set these, and lowered copies lie so many levels below."""
    given: list[float] = []
    monkeypatch.setattr(debias, "lowered_distance", lambda *_: torch.tensor(given))
    return given


def test_lowered_copies_are_below_relevant_rows_and_above_nothing() -> None:
    torch.manual_seed(0)
    level = torch.tensor([0, 1, 2, 3, 4]).repeat(200)
    distance = lowered_distance(level, "noise", 3)
    assert distance[level < 3].eq(0).all()
    for graded in (3, 4):
        assert set(distance[level == graded].tolist()) == set(map(float, range(1, graded)))
    swapped = lowered_distance(level, "swap", 3)
    assert (level - swapped)[level >= 3].eq(1).all()


@pytest.mark.parametrize("negatives", ["noise", "swap"])
def test_debias_hinge_golden_values(distances: list[float], negatives: debias.NegativeKind) -> None:
    # margin 0.5 a level: 0.5 * 2 - (1.0 - 0.8) = 0.8; 0.5 - 3 < 0 is none; clipped at 1
    distances += [2.0, 1.0, 3.0]
    loss = Debias(negatives, margin=0.5, clip=1.0, quantile=0.0)
    scored = predictions(torch.tensor([1.0, 3.0, 0.0]), [0.8, 0.0, 4.0], LOG_PI)
    found = loss(scored, graded([3, 3, 4]), clicks(3))
    assert found["debias"].item() == pytest.approx((0.8 + 0.0 + 1.0) / 3)
    rebuilt = -(LOG_PI[0, 0] + LOG_PI[0, 1] + LOG_PI[0, 0]).item() / 3  # levels 1, 2, 1
    assert found["lowered_anchor"].item() == pytest.approx(rebuilt)
    assert loss.eval()(scored, graded([3, 3, 4]), clicks(3)) == {}


def test_debias_leaves_out_positives_that_score_low_themselves(distances: list[float]) -> None:
    distances += [1.0, 1.0, 1.0]
    logit = torch.tensor([-5.0, 1.0, 1.0], requires_grad=True)
    loss = Debias("noise", margin=0.5, clip=1.0, quantile=0.5)
    loss(predictions(logit, [-5.0, 1.0, 1.0], LOG_PI), graded([3, 3, 3]), clicks(3))["debias"].backward()
    assert logit.grad is not None and logit.grad[0] == 0 and (logit.grad[1:] < 0).all()


def test_debias_without_relevant_or_without_shown_rows_is_zero() -> None:
    loss = Debias("noise", margin=0.5, clip=1.0, quantile=0.0)
    for level, weight in (([0, 1, 2], 1.0), ([4, 4, 4], 0.0)):
        found = loss(predictions(torch.ones(3), [1.0] * 3, LOG_PI), graded(level), clicks(3, weight))
        assert found["debias"].item() == 0.0 and found["lowered_anchor"].item() == 0.0
