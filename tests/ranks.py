"""Runs a function on real ranks: `run_ranks(2, "module:function", key=value)`."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from prectr_torchrec.system.job_environment import STORE

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["prectr_torchrec.training.trainer", "prectr_torchrec.evaluation.evaluate"])
"""Imported once a process of tests, and not by each rank anew: that takes longer than what most of them have to do."""


def run_ranks(ranks: int, target: str, **arguments: Any) -> str:
    """Runs `module:function(**arguments)`, a module below tests/, on gloo ranks, a process each; returns what they printed.

    Raises:
        AssertionError: a rank failed; carries the output.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        output.touch()
        given = (ranks, f"{folder}/store", target, json.dumps(arguments, default=str), str(output))
        started = [_CONTEXT.Process(target=_run_rank, args=(rank, *given)) for rank in range(ranks)]
        for process in started:
            process.start()
        deadline = time.monotonic() + 240
        while any(process.exitcode is None for process in started) and not any(process.exitcode for process in started):
            multiprocessing.connection.wait([p.sentinel for p in started if p.exitcode is None], deadline - time.monotonic())
            if time.monotonic() > deadline:
                break
        for process in started:  # the others may wait for one that failed, for ever
            process.join(10 if any(p.exitcode for p in started) else 0)
            process.kill()
            process.join()
        printed = output.read_text(encoding="utf-8")
        assert [process.exitcode for process in started] == [0] * ranks, printed[-6000:]
        return printed


def _run_rank(rank: int, ranks: int, store: str, target: str, arguments: str, output: str) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the tests
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {STORE: store, "TORCHELASTIC_RESTART_COUNT": "0"}
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(**json.loads(arguments))


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
