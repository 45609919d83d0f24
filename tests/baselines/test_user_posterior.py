"""The posterior of a user in memory; that its sums are right is in `state/test_effects.py`."""

from __future__ import annotations

import numpy as np
import pytest

from prectr_torchrec.baselines.user_posterior import UserPosterior
from prectr_torchrec.state.effect_filter import filtered_before
from prectr_torchrec.state.effects import EffectEvents, posterior

VARIANCE = np.array([0.5, 1.0, 2.0])


@pytest.fixture(scope="module")
def events() -> EffectEvents:
    rng = np.random.default_rng(0)
    user, time, impression = rng.integers(-3, 3, 200), rng.integers(0, 20, 200), np.arange(200)
    x, logit, never = rng.normal(size=(200, 3)), rng.normal(size=200), np.full(200, False)
    return EffectEvents(user, time, x, logit, np.ones(200), impression, never)


def test_is_what_the_strictly_earlier_events_say(events: EffectEvents) -> None:
    user, time = (grid.ravel() for grid in np.mgrid[-4:4, 0:21])
    found = UserPosterior(events, VARIANCE).at(user, time)
    for rows, sums in filtered_before(EffectEvents.sort(*events), user, time, VARIANCE):
        np.testing.assert_allclose(found[rows], posterior(sums, VARIANCE).mean, atol=1e-12)
    assert not found[time == 0].any() and found[time == 20].any()


def test_is_zero_without_a_past(events: EffectEvents) -> None:
    assert not UserPosterior(events, VARIANCE).at(np.array([99, 0]), np.array([10, 0])).any()


def test_of_no_events_at_all_is_zero(events: EffectEvents) -> None:
    nothing = events.take(slice(0, 0))
    assert UserPosterior(nothing, VARIANCE).at(np.array([1]), np.array([1])).tolist() == [[0.0, 0.0, 0.0]]
