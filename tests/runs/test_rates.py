"""Learning rates of a stage."""

import pytest

from prectr_torchrec.runs.rates import decay, warmup


@pytest.mark.parametrize(("steps", "risen_at"), [(4, 4), (100, 10), (0, 1), (1, 1)])
def test_rates_rise_to_their_peak_in_half_of_the_stage_at_most(steps: int, risen_at: int) -> None:
    rates = [warmup(step, 20, steps) for step in range(20)]
    assert rates == pytest.approx([min(1, (step + 1) / risen_at) for step in range(20)])


def test_rates_fall_to_the_last_step_and_not_below_it() -> None:
    assert [decay(step, 4) for step in range(6)] == [1, 0.75, 0.5, 0.25, 0.25, 0.25]
    assert decay(0, 0) == warmup(0, 0, 10) == 1
