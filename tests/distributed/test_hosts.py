"""A job of two hosts that lose sight of each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed.fault_worker import fault_config
from hosts import cut_off_and_back, two_hosts, why_not
from jobs import last_step, saved_step
from small_run import write_small_data


def test_a_host_that_is_cut_off_and_back_ends_the_job_with_the_others(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    config = fault_config(epochs=4, log_every=2, checkpoint_every=5, timeout=8, reader_timeout=5)
    data, run = write_small_data(tmp_path / "data", config), tmp_path / "run"
    with two_hosts() as hosts:
        said = cut_off_and_back(hosts, 1, config, data, run, at=8)
    assert "LostRanks: rank 1 did not answer" in said
    assert saved_step(run) == last_step(run) >= 40
