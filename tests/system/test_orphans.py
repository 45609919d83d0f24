"""No process outlives the command that started it, whatever ends that command or one of its ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from distributed.fault_worker import fault_config
from jobs import signal_at, start_training
from ranks import descendants, gone
from small_run import write_small_data

POOL = """
import multiprocessing, os, sys, time
from prectr_torchrec.system.orphans import die_with_parent
def work():
    die_with_parent()
    os.write(1, b"at work\\n")
    time.sleep(100)
if __name__ == "__main__":
    workers = [multiprocessing.get_context(sys.argv[1]).Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_end_with_their_parent(method: str, number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL, encoding="utf-8")
    with subprocess.Popen([sys.executable, script, method], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            assert [parent.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
            workers = descendants(parent.pid)
        finally:
            parent.send_signal(number)
    assert len(workers) >= 2
    assert gone(workers) == []


def test_a_worker_whose_parent_is_gone_already_does_not_begin(tmp_path: Path) -> None:
    code = "from prectr_torchrec.system.orphans import die_with_parent; die_with_parent(); print('began')"
    environment = {**os.environ, "PRECTR_LAUNCHER": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


SCHEDULED = """
import time
from prectr_torchrec.distributed import launch
launch.launch = lambda *given, **settings: print("began", flush=True) or time.sleep(100)
launch.main(["prectr_torchrec.training.rank", "--", "--run", "run"])
"""


@pytest.mark.parametrize(
    "command", [["-c", SCHEDULED], ["-m", "prectr_torchrec.system.orphans", "sh", "-c", "echo began; exec sleep 100"]]
)
def test_what_a_local_scheduler_or_the_demo_starts_ends_with_it(command: list[str]) -> None:
    shell = ["sh", "-c", '"$0" "$@" & wait', sys.executable, *command]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            assert parent.stdout.readline() == "began\n"
            (child,) = (child.pid for child in psutil.Process(parent.pid).children())
        finally:
            parent.kill()
    assert gone([child]) == []


ALONE = """
import os, time
from prectr_torchrec.system.orphans import die_with_launcher
shell = os.getppid()
die_with_launcher()
print("began", flush=True)
while os.getppid() == shell:
    time.sleep(0.01)
print("alive")
"""


def test_a_rank_that_a_shell_started_outlives_the_shell() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "PRECTR_LAUNCHER")}
    command = ["sh", "-c", '"$0" -c "$1" & read line', sys.executable, ALONE]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdin is not None and shell.stdout is not None
        assert shell.stdout.readline() == "began\n"
        shell.stdin.close()
        assert shell.stdout.readline() == "alive\n"


class Watched(NamedTuple):
    """A training job of two ranks with two readers each, whose launcher was killed."""

    processes: int
    listening: list[tuple[str, int]]
    """Addresses at which it listened while it ran."""
    left: list[int]
    """Its processes that outlived the launcher."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("job")
    config = fault_config(epochs=50, workers=2, log_every=1)
    data, run = write_small_data(folder / "data", config), folder / "run"
    job = start_training(config, data, run)
    signal_at(1, signal.SIGCONT, job, run)
    everyone = descendants(job.pid)
    sockets = [s for pid in (job.pid, *everyone) for s in psutil.Process(pid).net_connections("inet")]
    listening = [tuple(s.laddr) for s in sockets if s.status == psutil.CONN_LISTEN]
    job.kill()
    job.wait()
    return Watched(len(everyone), listening, gone(everyone))


def test_a_killed_launcher_leaves_no_rank_and_no_reader(job: Watched) -> None:
    assert job.processes >= 6  # 2 ranks, 4 readers
    assert job.left == []


def test_a_job_on_one_machine_listens_on_the_loopback_alone(job: Watched) -> None:
    assert job.listening, "gloo listens somewhere"
    assert {address for address, _ in job.listening} <= {"127.0.0.1", "::1"}
