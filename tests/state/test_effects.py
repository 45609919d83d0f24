"""Sums over users' pasts in one pass, against the formula event by event."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prectr_torchrec.state.effect_filter import filtered_before
from prectr_torchrec.state.effects import (
    EffectEvents,
    as_known,
    event_sums,
    increments,
    linear_increments,
    posterior,
    sums_before,
)

D = 3
VARIANCE = np.array([0.5, 1.0, 2.0])


@pytest.fixture(scope="module")
def log() -> dict[str, np.ndarray]:
    """Events with many ties in few moments, of users of whom one has most of them; clicks are known at once, or up to 5 later."""
    rng = np.random.default_rng(0)
    n = 250
    time, click = rng.integers(0, 25, n), rng.random(n) < 0.3
    known = np.where(click, time + rng.integers(0, 6, n), 0)
    known[click & (known == 0)] = 1  # 0 stands for never
    events = as_known(time, np.zeros(n), known)
    of = events.impression
    return {
        "user": (np.minimum(rng.geometric(0.4, n), 6) - 3)[of],
        "time": events.time,
        "x": rng.normal(size=(n, D))[of],
        "logit": rng.normal(size=n)[of],
        "examination": np.where(rng.random(n) < 0.3, 1.0, rng.random(n))[of],
        "impression": of,
        "click": events.click,
    }


def brute_force(log: dict[str, np.ndarray], user: int, time: int) -> tuple[np.ndarray, np.ndarray]:
    S, information = np.zeros(D), np.zeros((D, D))
    surplus, h = linear_increments(EffectEvents(**log))
    for n in range(len(log["user"])):
        if log["user"][n] == user and log["time"][n] < time:
            x = log["x"][n]
            S += surplus[n] * x
            information += h[n] * np.outer(x, x)
    return S, information


def filtered_by_hand(log: dict[str, np.ndarray], user: int, time: int) -> np.ndarray:
    """One event after the other, by the formulas."""
    S, information, weights = np.zeros(D), np.zeros((D, D)), {}
    mine = np.flatnonzero((log["user"] == user) & (log["time"] < time))
    for moment in np.unique(log["time"][mine]):
        b = np.linalg.solve(information + np.diag(1 / VARIANCE), S)
        here = [n for n in mine if log["time"][n] == moment]
        for n in sorted(here, key=lambda n: bool(log["click"][n])):
            x, seen = log["x"][n], log["examination"][n]
            if log["click"][n]:
                S = S + weights[log["impression"][n]] * x
                continue
            p = 1 / (1 + np.exp(-(log["logit"][n] + b @ x)))
            e = seen * p
            w = (1 - p) / (1 - e)
            h = e * (1 - e) * w**2
            weights[log["impression"][n]] = w
            S = S + (h * (b @ x) - e * w) * x
            information = information + h * np.outer(x, x)
    return np.concatenate([S, information[np.triu_indices(D)]])


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_the_filter_equals_one_event_after_the_other_whatever_the_block(log: dict[str, np.ndarray], block: int) -> None:
    user, time = (grid.ravel() for grid in np.mgrid[-4:6, 0:31])
    mixed = np.random.default_rng(1).permutation(len(user))
    user, time, found = user[mixed], time[mixed], np.full((len(user), D + D * (D + 1) // 2), np.nan)
    for rows, sums in filtered_before(EffectEvents.sort(*log.values()), user, time, VARIANCE, block=block):
        assert np.isnan(found[rows]).all()
        found[rows] = sums
    for u, t, sums in zip(user, time, found, strict=True):
        np.testing.assert_allclose(sums, filtered_by_hand(log, u, t), atol=1e-9)
    assert not found[user == 5].any()


def test_the_filter_finds_users_who_differ_much_where_one_step_does_not() -> None:
    rng = np.random.default_rng(0)
    users, events = 200, 400
    b = rng.normal(0, 2.0, users)
    user, time = np.repeat(np.arange(1, users + 1), events), np.tile(np.arange(events), users)
    x, logit = rng.normal(size=(users * events, 1)), rng.normal(-1, 1, users * events)
    click = rng.random(len(x)) < 1 / (1 + np.exp(-(logit + b[user - 1] * x[:, 0])))
    known = as_known(time, click, None)
    of = known.impression
    log = EffectEvents.sort(user[of], known.time, x[of], logit[of], np.ones(len(of)), of, known.click)
    who, when = np.arange(1, users + 1), np.full(users, events)
    found, linear = np.zeros((users, 1)), np.zeros((users, 1))
    sd = np.zeros((users, 1))
    for rows, sums in filtered_before(log, who, when, np.array([4.0])):
        found[rows], sd[rows] = posterior(sums, np.array([4.0]))
    for rows, sums in sums_before(log, who, when):
        linear[rows] = posterior(sums, np.array([4.0])).mean
    error = np.abs(found[:, 0] - b)
    assert error.mean() < 0.6 * np.abs(linear[:, 0] - b).mean()
    assert 0.8 < (error < 1.645 * sd[:, 0]).mean() <= 0.97  # of intervals that are to hold 90 %


def test_what_a_click_tells_is_the_derivative_of_its_likelihood() -> None:
    z, seen, step = np.array([-1.0, 0.5, 3.0]), np.array([1.0, 0.6, 0.2]), 1e-6
    found = increments(z, seen)

    def log_likelihood(z: np.ndarray, y: int) -> np.ndarray:
        e = seen / (1 + np.exp(-z))
        return np.log(e if y else 1 - e)

    for y in (0, 1):
        slope = (log_likelihood(z + step, y) - log_likelihood(z - step, y)) / (2 * step)
        np.testing.assert_allclose(found.surplus + y * found.weight, slope, atol=1e-8)
    e = seen / (1 + np.exp(-z))
    np.testing.assert_allclose(found.information, e * (found.surplus + found.weight) ** 2 + (1 - e) * found.surplus**2)


def all_sums(log: dict[str, np.ndarray], user: np.ndarray, time: np.ndarray, block: int) -> np.ndarray:
    found = np.full((len(user), D + D * (D + 1) // 2), np.nan)
    for rows, sums in sums_before(EffectEvents.sort(*log.values()), user, time, block=block):
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


def test_events_of_the_same_moment_do_not_count_yet(log: dict[str, np.ndarray]) -> None:
    user, time = np.array([-2, -2]), np.array([12, 13])
    was = all_sums(log, user, time, 16)
    at_twelve = np.flatnonzero((log["user"] == -2) & (log["time"] == 12))
    assert len(at_twelve) and not np.allclose(was[0], was[1])
    later = {**log, "time": log["time"].copy()}
    later["time"][at_twelve] = 1000
    np.testing.assert_allclose(all_sums(later, user, time, 16), was[[0, 0]], atol=1e-9)
    np.testing.assert_allclose(all_sums(later, user, time * 0 + 1001, 16), all_sums(log, user, time * 0 + 1001, 16), atol=1e-9)


def test_an_event_adds_its_own_sums(log: dict[str, np.ndarray]) -> None:
    of_user = log["user"] == 0
    surplus, information = linear_increments(EffectEvents(**log))
    one_by_one = sum(event_sums(log["x"][[n]], surplus[[n]], information[[n]])[0] for n in np.flatnonzero(of_user))
    np.testing.assert_allclose(all_sums(log, np.array([0]), np.array([99]), 16)[0], one_by_one, atol=1e-9)


def test_a_log_on_disk_is_read_a_block_at_a_time(log: dict[str, np.ndarray], tmp_path: Path) -> None:
    for name, values in EffectEvents.sort(*log.values())._asdict().items():
        np.save(tmp_path / f"{name}.npy", values)
    events = EffectEvents(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in EffectEvents._fields))
    parts = list(sums_before(events, log["user"], log["time"], block=16))
    assert len(parts) > 10 and sum(len(rows) for rows, _ in parts) == len(log["user"])


def test_no_events_leave_zeros() -> None:
    none = np.zeros(0)
    nobody, never = none.astype(int), none.astype(bool)
    events = EffectEvents(nobody, nobody, np.zeros((0, D)), none, none, nobody, never)
    of_one = np.array([1])
    for found in (sums_before(events, of_one, of_one), filtered_before(events, of_one, of_one, VARIANCE)):
        ((rows, sums),) = found
        assert rows.tolist() == [0] and sums.shape == (1, 9) and not sums.any()


def test_a_click_is_known_from_its_impression_on_at_the_earliest() -> None:
    events = as_known(np.array([10]), np.array([1]), np.array([5]))
    assert events.time.tolist() == [10, 10] and events.click.tolist() == [False, True]


def test_state_is_imported_without_torch() -> None:
    script = "import sys; sys.modules['torch'] = sys.modules['torchrec'] = None; import prectr_torchrec.state.effect_filter"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
