"""Values that no change may move unnoticed; `pins.py` says how one is moved on purpose."""

from __future__ import annotations

from typing import Any

import pytest
from pinned_runs import ON_TWO_RANKS, measure, shipped
from pins import HOW, differences, read_pins

Measured = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measure(tmp_path_factory.mktemp("pins"))


@pytest.mark.parametrize("name", ["samples", "distillation", "predictions", "scores"])
def test_values_are_those_pinned(measured: Measured, name: str) -> None:
    assert differences(name, measured[name]) == []


@pytest.mark.parametrize("config", shipped())
def test_the_first_losses_of_a_shipped_configuration_are_those_pinned(measured: Measured, config: str) -> None:
    assert config in read_pins("losses"), f"configs/{config}.yaml has no pin; {HOW}"
    assert differences("losses", measured["losses"], entry=config) == []


@pytest.mark.parametrize("config", ON_TWO_RANKS)
def test_the_first_losses_on_two_ranks_are_those_pinned(measured: Measured, config: str) -> None:
    assert differences("losses_on_two_ranks", measured["losses_on_two_ranks"], entry=config) == []


def test_no_pin_is_of_a_configuration_that_is_no_more() -> None:
    assert set(read_pins("losses")) <= set(shipped())
    assert set(read_pins("losses_on_two_ranks")) <= set(ON_TWO_RANKS)
