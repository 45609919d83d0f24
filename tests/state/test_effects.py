"""Sums over users' pasts in one pass, against the formula event by event."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prectr_torchrec.state.effects import EffectEvents, event_sums, posterior, sums_before

D = 3
VARIANCE = np.array([0.5, 1.0, 2.0])


@pytest.fixture(scope="module")
def log() -> dict[str, np.ndarray]:
    """Events with many ties in few moments, of users of whom one has most of them."""
    rng = np.random.default_rng(0)
    e = rng.random(300)
    return {
        "user": np.minimum(rng.geometric(0.4, 300), 6) - 3,
        "time": rng.integers(0, 25, 300),
        "x": rng.normal(size=(300, D)),
        "surplus": rng.integers(0, 2, 300) - e,
        "information": e * (1 - e),
    }


def brute_force(log: dict[str, np.ndarray], user: int, time: int) -> tuple[np.ndarray, np.ndarray]:
    S, information = np.zeros(D), np.zeros((D, D))
    for n in range(len(log["user"])):
        if log["user"][n] == user and log["time"][n] < time:
            x = log["x"][n]
            S += log["surplus"][n] * x
            information += log["information"][n] * np.outer(x, x)
    return S, information


def all_sums(log: dict[str, np.ndarray], user: np.ndarray, time: np.ndarray, block: int) -> np.ndarray:
    found = np.full((len(user), D + D * (D + 1) // 2), np.nan)
    for rows, sums in sums_before(EffectEvents.sort(**log), user, time, block=block):
        assert np.isnan(found[rows]).all()
        found[rows] = sums
    return found


@pytest.mark.parametrize("block", [1, 7, 64, 300, 10_000])
def test_one_pass_equals_brute_force_whatever_the_block(log: dict[str, np.ndarray], block: int) -> None:
    user, time = (grid.ravel() for grid in np.mgrid[-4:6, 0:27])
    mixed = np.random.default_rng(1).permutation(len(user))
    for u, t, sums in zip(user[mixed], time[mixed], all_sums(log, user[mixed], time[mixed], block), strict=True):
        S, information = brute_force(log, u, t)
        np.testing.assert_allclose(sums, np.concatenate([S, information[np.triu_indices(D)]]), atol=1e-9)


def test_the_posterior_is_one_newton_step_with_its_spread(log: dict[str, np.ndarray]) -> None:
    S, information = brute_force(log, 0, 20)
    found = posterior(all_sums(log, np.array([0]), np.array([20]), 16), VARIANCE)
    covariance = np.linalg.inv(information + np.diag(1 / VARIANCE))
    np.testing.assert_allclose(found.mean[0], covariance @ S, atol=1e-9)
    np.testing.assert_allclose(found.sd[0], np.sqrt(np.diag(covariance)), atol=1e-9)


def test_without_a_past_it_is_the_prior(log: dict[str, np.ndarray]) -> None:
    user = np.array([99, log["user"][0]])
    time = np.array([10, log["time"][log["user"] == user[1]].min()])
    found = posterior(all_sums(log, user, time, 16), VARIANCE)
    assert not found.mean.any() and np.allclose(found.sd, np.sqrt(VARIANCE))


def test_events_of_the_same_moment_and_events_known_later_do_not_count_yet(log: dict[str, np.ndarray]) -> None:
    user, time = np.array([-2, -2]), np.array([12, 13])
    was = all_sums(log, user, time, 16)
    at_twelve = np.flatnonzero((log["user"] == -2) & (log["time"] == 12))
    assert len(at_twelve) and not np.allclose(was[0], was[1])
    later = {**log, "time": log["time"].copy()}
    later["time"][at_twelve] = 1000  # their clicks become known then
    np.testing.assert_allclose(all_sums(later, user, time, 16), was[[0, 0]], atol=1e-9)
    np.testing.assert_allclose(all_sums(later, user, time * 0 + 1001, 16), all_sums(log, user, time * 0 + 1001, 16), atol=1e-9)


def test_an_event_adds_its_own_sums(log: dict[str, np.ndarray]) -> None:
    of_user = log["user"] == 0
    one_by_one = sum(
        event_sums(*(log[name][[n]] for name in ("x", "surplus", "information")))[0] for n in np.flatnonzero(of_user)
    )
    np.testing.assert_allclose(all_sums(log, np.array([0]), np.array([99]), 16)[0], one_by_one, atol=1e-9)


def test_a_log_on_disk_is_read_a_block_at_a_time(log: dict[str, np.ndarray], tmp_path: Path) -> None:
    for name, values in EffectEvents.sort(**log)._asdict().items():
        np.save(tmp_path / f"{name}.npy", values)
    events = EffectEvents(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in EffectEvents._fields))
    parts = list(sums_before(events, log["user"], log["time"], block=16))
    assert len(parts) > 10 and sum(len(rows) for rows, _ in parts) == len(log["user"])


def test_no_events_leave_zeros() -> None:
    none = np.zeros(0)
    events = EffectEvents(none.astype(int), none.astype(int), np.zeros((0, D)), none, none)
    ((rows, sums),) = sums_before(events, np.array([1]), np.array([1]))
    assert rows.tolist() == [0] and not sums.any()


def test_state_is_imported_without_torch() -> None:
    script = "import sys; sys.modules['torch'] = sys.modules['torchrec'] = None; import prectr_torchrec.state.effects"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
