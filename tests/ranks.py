"""Runs a function on real ranks: `run_ranks(2, "module:function", key=value)`."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from forked import Forked, rank_environments


def run_ranks(ranks: int, target: str, **arguments: Any) -> str:
    """Runs `module:function(**arguments)`, a module below tests/, on gloo ranks, a process each; returns what they printed.

    Raises:
        AssertionError: a rank failed; carries the output.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = [(target, json.dumps(arguments, default=str))] * ranks
        job = Forked("ranks:call", given, rank_environments(ranks, Path(folder)), Path(folder) / "output")
        assert job.wait() == 0, job.printed[-6000:]
        return job.printed


def call(target: str, arguments: str) -> None:
    """What each rank does."""
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(**json.loads(arguments))


def kill_when(reached: Callable[[], bool], job: subprocess.Popen[str] | Forked) -> None:
    """SIGKILL to a job and all its ranks as soon as it has got so far.

    Raises:
        AssertionError: it ended first; carries the output.
        TimeoutError: it hangs.
    """
    for _ in range(24_000):
        assert job.poll() is None, (job.printed if isinstance(job, Forked) else job.communicate()[0] or "")[-6000:]
        if reached():
            kill_all(job)
            return
        time.sleep(0.01)
    kill_all(job)
    raise TimeoutError("the job neither ended nor got so far")


def kill_all(job: subprocess.Popen[str] | Forked) -> None:
    """SIGKILL to a launcher and its ranks, which torchrun puts into sessions of their own: a signal to its group misses them."""
    if isinstance(job, Forked):
        job.kill()
        return
    for pid in (job.pid, *descendants(job.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    job.communicate()


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
