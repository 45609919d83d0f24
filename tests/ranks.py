"""Runs a function on real ranks: `run_ranks(2, "module:function", key=value)`; run as a script, one of those ranks."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


def run_ranks(ranks: int, target: str, **arguments: Any) -> str:
    """Runs `module:function(**arguments)`, a module below tests/, on spawned gloo ranks; returns what they printed.

    Raises:
        AssertionError: a rank failed; carries the output.
    """
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        __file__,
        target,
        json.dumps(arguments, default=str),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-6000:]
    return output


def kill_when(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """SIGKILL to a job and all its ranks as soon as it has got so far.

    Raises:
        AssertionError: it ended first; carries the output.
        TimeoutError: it hangs.
    """
    for _ in range(24_000):
        assert process.poll() is None, (process.communicate()[0] or "")[-6000:]
        if reached():
            kill_all(process)
            return
        time.sleep(0.01)
    kill_all(process)
    raise TimeoutError("the job neither ended nor got so far")


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a launcher and its ranks, which torchrun puts into sessions of their own: a signal to its group misses them."""
    for pid in (process.pid, *descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def descendants(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def gone(pids: list[int]) -> list[int]:
    """Waits until none of these processes runs any more; returns those that do after all."""
    left = pids
    for _ in range(200):
        left = [pid for pid in left if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
        if not left:
            break
        time.sleep(0.05)
    return left


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    module, function = sys.argv[1].split(":")
    getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
