"""DIN: the activation unit, its activations, and the ranker around it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inputs_by_hand import LEVELS, WIDTHS, inputs_by_hand
from torch import Tensor, nn

from prectr_torchrec.modules import Examination, Inputs, KnownGrade, LookedUpFeatures, PastCounts
from prectr_torchrec.modules.attention.activation import ROWS, ActivationUnit, Dice, PReLU
from prectr_torchrec.modules.rankers.din import DIN, ActivatedInterest

R, P, L, D, E = 3, 4, 5, 6, 2


@pytest.fixture
def given() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return torch.randn(R, P, D), torch.randn(R, L, D), torch.randn(R, L, E), torch.tensor([L, 2, 0])


def plain(unit: ActivationUnit, q: Tensor, k: Tensor, e: Tensor, lengths: Tensor) -> Tensor:
    """The unit as published: one MLP over all of a pair."""
    q, k, e = q.unsqueeze(2).expand(R, P, L, D), k.unsqueeze(1).expand(R, P, L, D), e.unsqueeze(1).expand(R, P, L, E)
    mask = (torch.arange(L) < lengths.unsqueeze(1)).unsqueeze(1).expand(R, P, L)
    s = unit.first(torch.cat([q, k, q - k, q * k, e], dim=3))
    for activation, layer in zip(unit.activations, unit.deeper, strict=True):
        s = layer(activation(s, mask))
    return s.squeeze(3) * mask


@pytest.mark.parametrize("activation", ["dice", "prelu"])
@pytest.mark.parametrize("hidden", [[36], [8, 4]])
def test_the_split_first_layer_is_the_plain_one(given: tuple[Tensor, ...], hidden: list[int], activation: str) -> None:
    q, k, e, lengths = (x.requires_grad_(x.is_floating_point()) for x in given)
    unit = ActivationUnit(D, E, hidden=hidden, activation=activation)
    weights, expected = unit(q, k, e, lengths), plain(unit, q, k, e, lengths)
    torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-5)
    leaves = [q, k, e, *unit.parameters()]
    found, wanted = (torch.autograd.grad(out.square().sum(), leaves) for out in (weights, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_padding_has_no_weight_and_moves_nothing(given: tuple[Tensor, ...]) -> None:
    q, k, e, lengths = given
    unit, real = ActivationUnit(D, E), torch.tensor([[True, True, False, False]] * R)
    weights = unit(q, k, e, lengths, real)
    assert weights[1, :, 2:].eq(0).all() and weights[2].eq(0).all() and weights[0].ne(0).all()
    padding = torch.arange(L) >= lengths.unsqueeze(1)
    other = unit(
        q.where(real.unsqueeze(2), 9.0),
        k.masked_fill(padding.unsqueeze(2), 9.0),
        e.masked_fill(padding.unsqueeze(2), 9.0),
        lengths,
        real,
    )
    torch.testing.assert_close(other[:, :2], weights[:, :2])


def test_weights_are_not_normalised(given: tuple[Tensor, ...]) -> None:
    weights = ActivationUnit(D, E)(*given)
    assert (weights[0] < 0).any() and (weights[0].sum(1) - 1).abs().min() > 1e-3


def test_a_unit_without_a_hidden_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="one hidden layer at least"):
        ActivationUnit(D, E, hidden=[])


def test_dice_turns_where_the_rows_that_count_are() -> None:
    torch.manual_seed(0)
    dice, s, mask = Dice(3), torch.randn(8, 3) * 4 + 5, torch.arange(8) < 6
    nn.init.constant_(dice.alpha, 0.3)
    mean, variance = s[:6].mean(0), s[:6].var(0, unbiased=False)
    p = ((s - mean) / (variance + 1e-8).sqrt()).sigmoid()
    torch.testing.assert_close(dice(s, mask), p * s + (1 - p) * 0.3 * s)
    torch.testing.assert_close((dice.mean, dice.variance), (0.1 * mean, 0.9 + 0.1 * variance))
    p = ((s - 0.1 * mean) / (0.9 + 0.1 * variance + 1e-8).sqrt()).sigmoid()
    torch.testing.assert_close(dice.eval()(s, mask), p * s + (1 - p) * 0.3 * s)
    assert dice.train()(s, torch.zeros(8, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("rows", [8, ROWS + 8])
def test_dice_has_the_gradients_of_its_formula(rows: int) -> None:
    torch.manual_seed(0)
    s, mask = torch.randn(rows, 3, dtype=torch.double, requires_grad=True), torch.arange(rows) % 4 < 3
    dice = Dice(3).double()
    nn.init.uniform_(dice.alpha)
    mean = s[mask].mean(0)
    p = ((s - mean) / (s[mask].var(0, unbiased=False) + dice.epsilon).sqrt()).sigmoid()
    expected, upstream = p * s + (1 - p) * dice.alpha * s, torch.randn(rows, 3, dtype=torch.double)
    wanted = torch.autograd.grad(expected, [s, dice.alpha], upstream)
    torch.testing.assert_close(torch.autograd.grad(dice(s, mask), [s, dice.alpha], upstream), wanted)


def test_dice_passes_gradcheck() -> None:
    torch.manual_seed(0)
    dice, mask = Dice(3).double(), torch.tensor([True, False, True, True, True])
    alpha = torch.rand(3, dtype=torch.double, requires_grad=True)

    def activated(s: Tensor, alpha: Tensor) -> Tensor:
        return torch.func.functional_call(dice, {"alpha": alpha}, (s, mask))

    assert torch.autograd.gradcheck(activated, (torch.randn(5, 3, dtype=torch.double, requires_grad=True), alpha))


def test_dice_of_a_constant_channel_has_finite_gradients() -> None:
    s = torch.ones(6, 2, requires_grad=True)
    Dice(2)(s, torch.ones(6, dtype=torch.bool)).sum().backward()
    assert s.grad is not None and s.grad.isfinite().all()


def test_prelu_is_that_of_torch() -> None:
    s, theirs = torch.randn(5, 3), nn.PReLU(3)
    torch.testing.assert_close(PReLU(3)(s, torch.ones(5, dtype=torch.bool)), theirs(s))


@pytest.fixture
def model() -> DIN:
    torch.manual_seed(0)
    grade = KnownGrade([float(level) for level in range(1, LEVELS + 1)], (1.0, 4.0))
    parts = {"features": LookedUpFeatures(WIDTHS), "counts": PastCounts(), "grade": grade}
    return DIN(parts, ActivatedInterest(WIDTHS.sequences["history"], LEVELS), tower=[8, 4], position=Examination(5)).eval()


@pytest.fixture
def inputs() -> Inputs:
    torch.manual_seed(1)
    return inputs_by_hand(3)


def test_scores_are_the_same_from_one_seed_to_the_last_digit(model: DIN, inputs: Inputs) -> None:
    torch.testing.assert_close(
        model(inputs).ranking["click"].logit,
        torch.tensor([0.24885, 0.24637, 0.25747, 0.26653, 0.23924, 0.24982]),
        atol=1e-4,
        rtol=0,
    )


def test_interest_is_the_weighted_sum_of_the_events(model: DIN, inputs: Inputs) -> None:
    part, past = model.parts["interest"], inputs.sequences["history"]
    features = part(inputs, None).features
    assert features[:2].eq(0).all()  # the first request has no past
    found = model.attention(inputs)["activation"]
    assert found.sequence == "history" and found.nothing is None and found.weights.shape == (3, 1, 2, 5)
    values = torch.cat([past.compared_by(["item_id", "query_id"]).vectors, part.event(past)], dim=2)
    torch.testing.assert_close(features[4], found.weights[2, 0, 0, :2] @ values[2, :2])


def test_missing_grades_and_a_missing_past_are_no_hole(model: DIN, inputs: Inputs) -> None:
    for other in (inputs.without_grades(), inputs.without_past("own")):
        changed = model(other).ranking["click"].logit
        assert changed.isfinite().all() and not changed.equal(model(inputs).ranking["click"].logit)


def test_padding_candidates_teach_dice_nothing(model: DIN, inputs: Inputs) -> None:
    weight, moments = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]), []
    for value in (0.0, 9.0):
        item = inputs.candidate["item_id"].where(weight.unsqueeze(1) > 0, value)
        dice = model.train().parts["interest"].unit.activations[0]
        nn.init.zeros_(dice.mean)
        model(replace(inputs, candidate={**inputs.candidate, "item_id": item}, candidate_weight=weight))
        moments.append(dice.mean.clone())
    torch.testing.assert_close(*moments)


def test_every_weight_learns(model: DIN, inputs: Inputs) -> None:
    (-model.train()(inputs).logged["click"].log_yes.mean()).backward()
    silent = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert silent == set()
