"""Kills ranks, readers and launchers of a training job again and again, and looks for what they leave.

    python benchmarks/kills.py --config demo --data SAMPLES --out DIR --kills 20

Each round starts `prectr train` on two ranks with two readers each, which goes on from the last save, waits until all of them are
at work, and sends SIGKILL to a rank, SIGKILL to the launcher, or SIGTERM to the launcher. Twenty seconds after the job has ended
none of its processes may be there, and the folder must be free for the next round. psutil comes with the extra `dev`.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from common import describe

from prectr_torchrec.config.files import load_config

WORKERS = 2
RANKS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--data", type=Path, required=True, help="prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the run and its log")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting")
    arguments = parser.parse_args()
    print(describe("torch"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    left_over = 0
    victims = itertools.cycle([("rank", signal.SIGKILL), ("launcher", signal.SIGKILL), ("launcher", signal.SIGTERM)])
    for number, (victim, how) in enumerate(itertools.islice(victims, arguments.kills)):
        job = start(arguments)
        everyone = wait_for_all(job, arguments.out / "log")
        target = job if victim == "launcher" else ranks_of(job)[number % RANKS]
        target.send_signal(how)
        job.wait()
        _, left = psutil.wait_procs(everyone, timeout=20)
        left_over += len(left)
        print(f"{number + 1}: {how.name} of a {victim}, {len(everyone)} processes, {len(left)} left", flush=True)
        for process in left:
            process.kill()
    print(f"{arguments.kills} kills, {left_over} processes left")
    raise SystemExit(1 if left_over else 0)


def start(arguments: argparse.Namespace) -> psutil.Popen:
    last = len(load_config(arguments.config, arguments.set).train.stages) - 1
    endless = f"train.stages.{last}.epochs=1000"  # no job ends by itself
    sets = [word for override in (*arguments.set, endless, f"batch.workers={WORKERS}") for word in ("--set", override)]
    command = ["train", "--config", arguments.config, "--data", arguments.data, "--run", arguments.out / "run", *sets]
    with (arguments.out / "log").open("a", encoding="utf-8") as log:
        return psutil.Popen(
            [sys.executable, "-m", "prectr_torchrec.cli", *map(str, command), "--nproc", str(RANKS)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def ranks_of(job: psutil.Popen) -> list[psutil.Process]:
    return [process for process in job.children() if len(process.children()) >= WORKERS]


def wait_for_all(job: psutil.Popen, log: Path) -> list[psutil.Process]:
    """The job's processes once every rank has its readers."""
    while len(ranks_of(job)) < RANKS:
        if job.poll() is not None:
            raise RuntimeError(f"the job ended before it was killed; give it more steps: {log}")
        time.sleep(0.1)
    return list(job.children(recursive=True))


if __name__ == "__main__":
    main()
