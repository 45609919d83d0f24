"""No process outlives the one that it works for: `python -m prectr_torchrec.system.orphans COMMAND` runs a command so."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time

from prectr_torchrec.system.job_environment import LAUNCHER

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Has this process killed when its parent ends, however that ends: the parent of a worker of a pool, or of a rank."""
    parent = _expected_parent()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent watch", daemon=True).start()
    if os.getppid() != parent:  # it ended before this was asked for
        os._exit(1)


def die_with_launcher() -> None:
    """As `die_with_parent`, of a rank; one that a shell started by itself may outlive the shell."""
    if "RANK" in os.environ:
        die_with_parent()


def _expected_parent() -> int:
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        return parent.pid
    with contextlib.suppress(KeyError, ValueError):
        return int(os.environ[LAUNCHER])
    return os.getppid()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    die_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])  # it keeps what the kernel was asked for
