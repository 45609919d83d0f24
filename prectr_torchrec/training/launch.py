"""Starts a job on this machine, one process a rank, and brings home a failing rank's own message."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from typing import Literal

Program = Literal["train", "evaluate", "teach", "distill"]
PROGRAMS: dict[Program, str] = {
    "train": "prectr_torchrec.training.main",
    "evaluate": "prectr_torchrec.training.evaluate",
    "teach": "prectr_torchrec.text.teach",
    "distill": "prectr_torchrec.text.distill",
}


class WorkerError(RuntimeError):
    """A rank failed; the message is the rank's own."""


def launch(program: Program, args: Sequence[str], nproc: int = 1) -> None:
    """Runs a program on `nproc` ranks of this machine under torchrun and waits for it.

    One rank runs in this process, and so does every rank that a launcher started (`RANK` is set): jobs do not nest.

    Args:
        program: which one.
        args: its command-line arguments.
        nproc: ranks.

    Raises:
        ValueError: `nproc` below 1, or the program's own complaint where it runs in this process.
        WorkerError: a rank failed.
    """
    if nproc < 1:
        raise ValueError(f"nproc is {nproc}; it must be at least 1")
    with _thread_settings(nproc):
        if nproc == 1 or "RANK" in os.environ:
            importlib.import_module(PROGRAMS[program]).main(list(args))
        else:
            # without `--` torchrun takes `--run` for an abbreviation of its own `--run-path`
            _run_ranks(["--standalone", f"--nproc-per-node={nproc}", "-m", PROGRAMS[program], "--", *args])


@contextlib.contextmanager
def _thread_settings(nproc: int) -> Iterator[None]:
    """Splits the cores among the ranks and lets idle threads sleep, where the environment does not say otherwise."""
    cores = len(os.sched_getaffinity(0))
    settings = {"OMP_WAIT_POLICY": "PASSIVE"} | ({"OMP_NUM_THREADS": str(max(1, cores // nproc))} if nproc > 1 else {})
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _run_ranks(torchrun_args: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(torchrun_args))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        recorded = failure.error_file_data["message"]
        if isinstance(recorded, dict):  # written by `record` around the program's main
            raise WorkerError(f"rank {rank}: {recorded['message']}") from None
        reason = failure.message if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        raise WorkerError(f"rank {rank} failed ({reason}); its own output is above") from None
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval) from None
