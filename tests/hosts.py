"""Hosts of a job on one machine: network namespaces joined by a cable that can be pulled.

Run as a script, two hosts of two ranks each: `python tests/hosts.py FOLDER` trains once undisturbed, and once with the second
host cut off in the middle and back, and compares the ends; then once more with one host going on alone in between.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distributed.fault_worker import fault_config
from jobs import assert_same_end, finish, last_step, saved_step, start_training
from small_run import write_small_data

from prectr_torchrec.config.files import dump_config
from prectr_torchrec.config.run import RunConfig

PORT = 29500


def why_not() -> str | None:
    """Why namespaces cannot be made here, None if they can."""
    try:
        with two_hosts():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces are not permitted here: {getattr(error, 'stderr', None) or error}"


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two namespaces with a cable between them; whatever still runs in them is killed at the end."""
    hosts = Hosts(f"pt{os.getpid()}")
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.remove()


class Hosts:
    """Hosts 0 and 1, with the addresses 10.77.0.1 and 10.77.0.2, each with host name and network of its own."""

    def __init__(self, name: str) -> None:
        self.names = [f"{name}-{host}" for host in range(2)]

    def make(self) -> None:
        for name in self.names:
            _ip("netns", "add", name)
        first, second = (f"{name}v" for name in self.names)
        _ip("link", "add", first, "netns", self.names[0], "type", "veth", "peer", "name", second, "netns", self.names[1])
        for host, name in enumerate(self.names):
            _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", f"{name}v")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", f"{name}v", "up")

    def remove(self) -> None:
        for name in self.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def cable(self, *, plugged: bool) -> None:
        """Pulls or plugs the cable of host 1; nothing is told to the other end."""
        _ip("-n", self.names[1], "link", "set", f"{self.names[1]}v", "up" if plugged else "down")

    def train(self, host: int, ranks: int, config: Path, data: Path, run: Path, nodes: str) -> subprocess.Popen[str]:
        """`prectr train` on a host, started again when it fails, as a scheduler would; its log is beside the run."""
        command = [sys.executable, "-m", "prectr_torchrec.cli", "train", "--config", str(config), "--data", str(data)]
        command += ["--run", str(run), "--nproc", str(ranks), "--max-restarts", "3"]
        command += ["--nodes", nodes, "--rendezvous", f"{self.address(0)}:{PORT}"]
        script = f'hostname {self.address(host)}; for start in 1 2 3; do "$@" && exit 0; done; exit 1'
        with run.with_suffix(f".host{host}.log").open("w", encoding="utf-8") as log:
            inside = ["ip", "netns", "exec", self.names[host], "unshare", "--uts", "bash", "-c", script, "bash", *command]
            return subprocess.Popen(inside, stdout=log, stderr=subprocess.STDOUT, text=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def cut_off_and_back(hosts: Hosts, ranks: int, config: RunConfig, data: Path, run: Path, at: int) -> str:
    """Trains on both hosts, pulls the cable once step `at` is logged, plugs it in once the lost ranks are named; returns what
    host 0 said."""
    return _train(hosts, ranks, config, data, run, "2", at, until="did not answer")


def lose_one_and_go_on(hosts: Hosts, ranks: int, config: RunConfig, data: Path, run: Path, at: int) -> str:
    """The same, the cable staying out until host 0 goes on by itself; with host 1 back, both go on."""
    said = _train(hosts, ranks, config, data, run, "1:2", at, until=f"goes on with {ranks}\n")
    assert f"goes on with {2 * ranks}\n" in said.partition(f"goes on with {ranks}\n")[2]
    return said


def _train(hosts: Hosts, ranks: int, config: RunConfig, data: Path, run: Path, nodes: str, at: int, until: str) -> str:
    written = run.with_suffix(".yaml")
    written.write_text(dump_config(config), encoding="utf-8")
    jobs = [hosts.train(host, ranks, written, data, run, nodes) for host in range(2)]
    _wait_for(lambda: last_step(run) >= at, jobs)
    hosts.cable(plugged=False)
    log = run.with_suffix(".host0.log")
    _wait_for(lambda: until in log.read_text(encoding="utf-8"), jobs)
    hosts.cable(plugged=True)
    for host, job in enumerate(jobs):
        assert job.wait(timeout=300) == 0, run.with_suffix(f".host{host}.log").read_text(encoding="utf-8")[-6000:]
    return log.read_text(encoding="utf-8")


def _wait_for(reached: Callable[[], bool], jobs: list[subprocess.Popen[str]]) -> None:
    for _ in range(4_800):
        if reached():
            return
        assert all(job.poll() is None for job in jobs), "a host ended before it got so far"
        time.sleep(0.05)
    raise TimeoutError("no host got so far")


def main(folder: Path) -> None:
    """Undisturbed on one host of four ranks and its plan, and on two hosts of two ranks with the cable pulled."""
    config = fault_config(epochs=8, log_every=2, checkpoint_every=5, timeout=10, reader_timeout=5)
    folder.mkdir(parents=True)
    data, run, whole = write_small_data(folder / "data", config), folder / "cut", folder / "whole"
    with two_hosts() as hosts:
        said = cut_off_and_back(hosts, 2, config, data, run, at=8)
    print(next(line for line in said.splitlines() if "did not answer" in line))
    finish(start_training(config, data, whole, "--plan", str(run / "plan.json"), ranks=4), whole)
    # four ranks: after a restart the gradients' sums were rounded otherwise
    assert_same_end(run, whole, tolerance=1e-5)
    print(f"both ended at step {saved_step(run)} with the same weights, optimizer states and random states")
    longer = config.model_copy(deep=True)
    longer.train.stages[0].epochs = 120
    with two_hosts() as hosts:
        said = lose_one_and_go_on(hosts, 2, longer, data, folder / "alone", at=8)
    print("\n".join(line for line in said.splitlines() if "goes on with" in line))
    print(f"ended at step {saved_step(folder / 'alone')}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
