"""Processes of the tests, forked from one that has imported what they need: importing it anew would take longer than the work."""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from prectr_torchrec.cli.main import main
from prectr_torchrec.system.job_environment import STORE

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [f"prectr_torchrec.{name}" for name in ("training.trainer", "evaluation.evaluate", "serving.ranker", "data.prepare.prepare")]
)
SECONDS = 240
"""That anything may take."""


class Forked:
    """Processes that run `module:function(*arguments)`; what they print goes into one file.

    Args:
        target: of a module below tests/ or of the project.
        arguments: of each process.
        environments: of each process, beside that of the tests.
        output: the file.
        errors: another file for the standard error.

    Attributes:
        processes: started.
    """

    def __init__(
        self,
        target: str,
        arguments: Sequence[tuple[Any, ...]],
        environments: Sequence[dict[str, str]],
        output: Path,
        errors: Path | None = None,
    ) -> None:
        self.output = output
        files = tuple(map(str, (output, errors or output)))
        for file in files:
            Path(file).touch()
        each = zip(arguments, environments, strict=True)
        self.processes = [_CONTEXT.Process(target=_run, args=(target, given, own, *files)) for given, own in each]
        for process in self.processes:
            process.start()

    @property
    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def poll(self) -> int | None:
        """The first code but 0, or 0; None while none has failed and some still run."""
        codes = [process.exitcode for process in self.processes]
        return next((code for code in codes if code), None if None in codes else 0)

    def wait(self) -> int:
        """The code of `poll` in the end; where one failed, the others have ten seconds to see that."""
        deadline = time.monotonic() + SECONDS
        while self.poll() is None and time.monotonic() < deadline:
            running = [process.sentinel for process in self.processes if process.exitcode is None]
            multiprocessing.connection.wait(running, deadline - time.monotonic())
        for process in self.processes:
            process.join(10 if self.poll() else 0)
        self.kill()
        return self.poll() or 0

    def kill(self) -> None:
        """SIGKILL to all that still run."""
        for process in self.processes:
            process.kill()
            process.join()


def _run(target: str, arguments: tuple[Any, ...], environment: dict[str, str], output: str, errors: str) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the tests
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined]  # it stands for a process of its own
    for number, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    warnings.simplefilter("ignore")
    os.environ |= environment
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(*arguments)


def rank_environments(ranks: int, folder: Path) -> list[dict[str, str]]:
    """The environment of each rank, as a launcher sets it; they meet in a new file of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    store = str(folder / f".store-{uuid4().hex}")
    every = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "TORCHELASTIC_RESTART_COUNT": "0", STORE: store}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **every} for rank in range(ranks)]


def prectr(*arguments: str) -> None:
    """The command, in this process."""
    sys.argv = ["prectr", *arguments]
    main()
