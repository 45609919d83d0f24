"""Declared columns in mixed effects: what they are worth to all, and what users' coefficients are multiplied with."""

from __future__ import annotations

import pytest
import torch

from prectr_torchrec.modules import (
    DeclaredEffects,
    Given,
    Inputs,
    NumberColumn,
    Numbers,
    TextReading,
    VectorColumn,
    Vectors,
    Widths,
)
from prectr_torchrec.modules.rankers.mixed_effects import MixedEffects

PRICE = NumberColumn("candidate", "price", edges=[0.0, 4.0, 8.0], bins=2, mean=4.0, deviation=2.0)
HOUR = NumberColumn("request", "hour", edges=[0.0, 12.0, 24.0], bins=2, mean=12.0, deviation=6.0)
IMAGE = VectorColumn("candidate", "image", 3, [0.0] * 3, [1.0] * 3)
CONTEXT = VectorColumn("request", "context", 2, [0.0] * 2, [1.0] * 2)
NAN = torch.nan
NO_TEXT = TextReading.of_nothing(torch.ones(3))


@pytest.fixture
def inputs() -> Inputs:
    """Two requests, the second with one candidate that lacks everything."""
    candidate = {
        "price": torch.tensor([[2.0], [8.0], [NAN]]),
        "image": torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.0], [NAN] * 3]),
        "position": torch.tensor([1, 2, 1]),
        "relevance": torch.tensor([3.0, 2.0, NAN]),
        "predicted": torch.zeros(3, 2),
    }
    request = {"hour": torch.tensor([[6.0], [NAN]]), "context": torch.tensor([[1.0, 2.0], [NAN, NAN]])}
    return Inputs(request, candidate, {}, {}, torch.ones(2), torch.tensor([0, 0, 1]), torch.ones(3))


def declared() -> DeclaredEffects:
    torch.manual_seed(0)
    return DeclaredEffects(Numbers([PRICE, HOUR]), [PRICE, HOUR], Vectors([IMAGE, CONTEXT], dim=2))


def test_golden_values(inputs: Inputs) -> None:
    effects = declared()
    assert effects.num_coordinates == 3 and effects.names == ["price"]
    found = effects(inputs, NO_TEXT)
    assert effects.vectors is not None
    projected = effects.vectors.encode[0].project(torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.0]]))
    expected = torch.cat([torch.tensor([[-1.0], [2.0]]), projected], dim=1)
    torch.testing.assert_close(found.coordinates, torch.cat([expected, torch.zeros(1, 3)]))
    assert found.to_all.tolist() == [0.0] * 3
    with torch.no_grad():
        effects.weight[:6] = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])  # two bins of each number, then who lacks it
    assert effects(inputs, NO_TEXT).to_all.tolist() == [0.5 + 4 * 0.5, 1 + 2 + 4 * 0.5, 16 + 32]


def test_weights_bring_their_share_of_the_distance_from_their_prior(inputs: Inputs) -> None:
    effects = declared()
    effects.candidates.fill_(50)
    assert effects(inputs, NO_TEXT).divergence == 0
    with torch.no_grad():
        effects.weight[1], effects.weight[-1] = 0.4, -0.2
    torch.testing.assert_close(effects(inputs, NO_TEXT).divergence, torch.tensor((4.0 + 1.0) / 2 / 50))
    model = MixedEffects({}, [], rank=0, level_grades=[1.0, 3.0], grade_range=(1.0, 3.0), declared=effects).train()
    model.start_from([1.0], candidates=100)
    torch.testing.assert_close(model(inputs).own.divergence, torch.full((3,), 2.5 / 100))


def test_a_request_alone_has_no_coordinates(inputs: Inputs) -> None:
    found = DeclaredEffects(Numbers([HOUR]), [HOUR])(inputs, NO_TEXT)
    assert found.coordinates.shape == (3, 0) and found.to_all.shape == (3,)


def test_everything_learns(inputs: Inputs) -> None:
    effects = declared()
    found = effects(inputs, NO_TEXT)
    (found.to_all.sum() + found.coordinates.square().sum()).backward()
    assert effects.weight.grad is not None and effects.vectors is not None
    learned = effects.vectors.encode[0].project.weight.grad
    assert learned is not None and learned.any() and effects.weight.grad[:4].any()


def test_a_users_coefficients_are_of_declared_columns_before_those_of_taste(inputs: Inputs) -> None:
    effects = declared()
    model = MixedEffects(
        {"user_effect": 2 + 3 + 1}, [], rank=1, level_grades=[1.0, 3.0], grade_range=(1.0, 3.0), declared=effects
    ).eval()
    row = torch.zeros(2, 12)
    row[0, 2] = 1.0  # of the price
    rows = {**inputs.request, "user_effect": row, "user_trained": torch.ones(2, 1)}
    moved = model(
        Inputs(rows, inputs.candidate, {}, {}, inputs.request_weight, inputs.candidate_request, inputs.candidate_weight)
    )
    torch.testing.assert_close(moved.own.by_effect["user_effect"], torch.tensor([-0.3, 0.6, 0.0]))
    assert moved.own.x.shape == (3, 6) and model.variance("user_effect").tolist() == pytest.approx(
        [1.0] * 2 + [0.09] * 3 + [0.04]
    )


def test_a_row_that_declared_columns_would_fill_without_a_taste_is_refused() -> None:
    def nothing() -> None:
        raise AssertionError("it reads no text")

    widths = Widths({"user_effect": 12}, {"brand_id_taste": 6}, {})
    numbers = [PRICE, *(PRICE._replace(name=f"number_{n}") for n in range(3))]
    given = Given(widths, [1.0, 3.0], (1.0, 3.0), 10, (), nothing, nothing, numbers=numbers)  # type: ignore[arg-type]
    settings = {"position_bias": True, "position_count": 5, "relevance": False, "posterior": {}, "taste": 0, "taste_sd": 0.2}
    with pytest.raises(ValueError, match="a row of user_effect has no room for the 3 coefficients of taste: make it 20 wide"):
        MixedEffects.build(given, parts={"numbers": Numbers.build}, **settings)
