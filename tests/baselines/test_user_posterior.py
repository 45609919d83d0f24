"""The posterior of a user against the formula, event by event."""

from __future__ import annotations

import numpy as np
import pytest

from prectr_torchrec.baselines.user_posterior import UserPosterior

VARIANCE = np.array([0.5, 1.0, 2.0])


@pytest.fixture(scope="module")
def events() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    e = rng.random(200)
    return {
        "user": rng.integers(-3, 3, 200),
        "time": rng.integers(0, 20, 200),
        "x": rng.normal(size=(200, 3)),
        "surplus": rng.integers(0, 2, 200) - e,
        "information": e * (1 - e),
    }


def test_is_one_newton_step_from_the_strictly_earlier_events(events: dict[str, np.ndarray]) -> None:
    user, time = (grid.ravel() for grid in np.mgrid[-4:4, 0:21])
    found = UserPosterior(**events, variance=VARIANCE).at(user, time)
    for u, t, b in zip(user, time, found, strict=True):
        past = (events["user"] == u) & (events["time"] < t)
        x = events["x"][past]
        information = (x * events["information"][past, None]).T @ x + np.diag(1 / VARIANCE)
        np.testing.assert_allclose(b, np.linalg.solve(information, events["surplus"][past] @ x), atol=1e-10)


def test_is_zero_without_a_past(events: dict[str, np.ndarray]) -> None:
    posterior = UserPosterior(**events, variance=VARIANCE)
    assert not posterior.at(np.array([99, 0]), np.array([10, 0])).any()


def test_of_no_events_at_all_is_zero() -> None:
    nothing = np.zeros(0)
    posterior = UserPosterior(nothing.astype(int), nothing.astype(int), np.zeros((0, 3)), nothing, nothing, VARIANCE)
    assert posterior.at(np.array([1]), np.array([1])).tolist() == [[0.0, 0.0, 0.0]]
