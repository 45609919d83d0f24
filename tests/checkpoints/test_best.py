"""The best checkpoint is the latest that is not worse than the lowest beyond the interval."""

from pathlib import Path

import numpy as np
import pytest

from prectr_torchrec.checkpoints.best import GROUPS, LOWEST, ValidationLoss, choose_best, request_groups

HARDNESS = np.random.default_rng(0).gamma(2.0, 5.0, GROUPS)
"""What of the loss sums is of the requests, and the same for all checkpoints; by far the most of it."""


def loss(shift: float, noise: float = 0.0, seed: int = 0, clicks: int = 400) -> ValidationLoss:
    """Sums over 10 rows a group; `shift` and `noise` are of the mean loss and of a group's mean."""
    own = np.random.default_rng(seed).normal(0, noise, GROUPS)
    return ValidationLoss(clicks=clicks, rows=[10.0] * GROUPS, loss=(HARDNESS + 10 * (shift + own)).tolist())


def test_a_difference_within_its_interval_keeps_the_later(tmp_path: Path) -> None:
    assert choose_best(tmp_path, loss(0.0))
    assert choose_best(tmp_path, loss(0.001, noise=0.02, seed=1))  # standard error .0014


def test_a_loss_that_is_worse_beyond_its_interval_does_not_win(tmp_path: Path) -> None:
    choose_best(tmp_path, loss(0.0))
    assert not choose_best(tmp_path, loss(0.01, noise=0.02, seed=1))


def test_what_is_hard_for_both_cancels() -> None:
    """The loss of the groups varies by far more than the difference; compared request by request it is certain."""
    assert np.std(HARDNESS / 10) / np.sqrt(GROUPS) > 10 * 0.001
    assert loss(0.001).is_worse(loss(0.0))


def test_small_steps_for_the_worse_do_not_add_up(tmp_path: Path) -> None:
    chosen = [choose_best(tmp_path, loss(0.002 * epoch, noise=0.02, seed=epoch)) for epoch in range(6)]
    assert chosen[0] and chosen[1] and not any(chosen[4:])


def test_one_class_chooses_nothing_and_is_compared_with_nothing(tmp_path: Path) -> None:
    assert not choose_best(tmp_path, loss(-1.0, clicks=0))
    assert not (tmp_path / LOWEST).exists()
    assert choose_best(tmp_path, loss(0.0))


def test_the_standard_error_is_that_of_resampled_groups() -> None:
    """The difference that is just worse lies 1.96 of the bootstrap's standard deviations above."""
    rng, rows = np.random.default_rng(5), np.array([10.0] * GROUPS)
    difference = np.array(loss(0.0, noise=0.02, seed=3).loss) - HARDNESS
    draws = [difference[i].sum() / rows[i].sum() for i in rng.integers(0, GROUPS, (2000, GROUPS))]
    bound = 1.96 * np.std(draws) - difference.sum() / rows.sum()  # to be added, so that it is worse
    assert loss(bound * 1.1, noise=0.02, seed=3).is_worse(loss(0.0))
    assert not loss(bound * 0.9, noise=0.02, seed=3).is_worse(loss(0.0))


def test_groups_depend_on_the_request_alone_and_are_about_even() -> None:
    ids = np.arange(10**12, 10**12 + 20_000)
    groups = request_groups(ids)
    assert (request_groups(ids[::-1])[::-1] == groups).all()
    counts = np.bincount(groups, minlength=GROUPS)
    assert counts.min() > 50 and counts.max() < 160


def test_entropy_is_relative_to_the_click_rate() -> None:
    found = ValidationLoss(clicks=5, rows=[10.0] + [0.0] * (GROUPS - 1), loss=[10 * np.log(2)] + [0.0] * (GROUPS - 1))
    assert found.ne == pytest.approx(1.0)
