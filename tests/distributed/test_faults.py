"""What `docs/reliability.md` says of faults: each one brought about on real ranks and real files."""

from __future__ import annotations

import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed.fault_worker import fault_config
from jobs import finish, saved_step, signal_at, start_training
from ranks import descendants, gone, run_ranks
from small_run import write_small_data


def plant_nan(path: Path, row: int) -> None:
    """Into the counters of one request of a sample file."""
    table = pq.read_table(path)
    column = table.schema.get_field_index("user_shown")
    values = table["user_shown"].to_pylist()
    values[row] = [float("nan")] * len(values[row])
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(values, table.schema.field(column).type)), path)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What two ranks printed that walked through the cases of `fault_worker`."""
    folder = tmp_path_factory.mktemp("faults")
    for name in ("data", "planted"):
        write_small_data(folder / name, fault_config())
    write_small_data(folder / "uneven", fault_config(), requests=1)
    plant_nan(folder / "planted" / "train" / "part-00001.parquet", row=5)
    return run_ranks(
        2,
        "distributed.fault_worker:walk",
        data=folder / "data",
        planted=folder / "planted",
        uneven=folder / "uneven",
        runs=folder / "runs",
    )


@pytest.mark.parametrize("case", ["stop", "skip", "explosion", "weights", "disk", "uneven", "signal", "gone"])
def test_two_ranks_hold_out(walked: str, case: str) -> None:
    assert walked.count(f"held: {case}") == 2


def test_a_killed_rank_starts_all_again_and_a_signal_to_the_job_saves(tmp_path: Path) -> None:
    config = fault_config(epochs=8, workers=1, log_every=2, checkpoint_every=5)
    data, run = write_small_data(tmp_path / "data", config), tmp_path / "run"
    job = start_training(config, data, run, "--max-restarts", "1")
    signal_at(8, signal.SIGCONT, job, run)
    everyone = descendants(job.pid)
    signal_at(8, signal.SIGKILL, job, run, rank=1)
    signal_at(16, signal.SIGTERM, job, run)
    said = finish(job, run, code=75)
    assert f"stopped at step {saved_step(run)}, which is saved; the same command goes on" in said
    assert saved_step(run) >= 16
    assert gone(everyone) == []  # the killed rank's reader too
