"""Starts a job on this machine, one process a rank, and brings home a failing rank's own message."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prectr_torchrec.distributed.rendezvous import local_rendezvous, rendezvous_of_machines
from prectr_torchrec.distributed.stop import REQUEUE, SIGNALS
from prectr_torchrec.system.failures import MISTAKE, WorkerError, run_command
from prectr_torchrec.system.job_environment import LOCKED, environment
from prectr_torchrec.system.locks import folder_lock
from prectr_torchrec.system.orphans import die_with_parent

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

Program = Literal["train", "fuse", "evaluate", "importance", "teach", "distill"]
PROGRAMS: dict[Program, str] = {
    "train": "prectr_torchrec.training.rank",
    "fuse": "prectr_torchrec.training.fuse",
    "evaluate": "prectr_torchrec.evaluation.evaluate",
    "importance": "prectr_torchrec.evaluation.importance",
    "teach": "prectr_torchrec.text.teach",
    "distill": "prectr_torchrec.text.distill",
}


FORWARDED = ("SIGHUP", "SIGQUIT", *(number.name for number in SIGNALS))
"""Signals that torchrun hands on to the ranks."""


_LOST = re.compile(r"LostRanks|Dist\w*Error|Connection\w*Error|RuntimeError: .*[Gg]loo")
"""What ranks say whose neighbours have failed."""


def launch(
    program: Program,
    args: Sequence[str],
    nproc: int = 1,
    *,
    output: Path | None = None,
    max_restarts: int = 0,
    nodes: str = "1",
    rendezvous: str | None = None,
) -> None:
    """Runs a program on `nproc` ranks of this machine under torchrun and waits for it.

    One rank that is not to be restarted runs in this process, and so does every rank that a launcher started (`RANK` is set):
    jobs do not nest. On one machine the ranks meet through files that only this user can read, and nothing listens but on the
    loopback.

    Args:
        program: which one.
        args: its command-line arguments.
        nproc: ranks on this machine.
        output: the folder that the job writes to, which is locked for it; None: it needs no lock.
        max_restarts: how often all ranks are started again after one has failed.
        nodes: machines of the job, `N` or `MIN:MAX`; the same command runs on each of them.
        rendezvous: `HOST:PORT` of one of the machines, where they meet; needed for more than one.

    Raises:
        ValueError: `nproc` below 1, nodes without a rendezvous or one without the other, another job writes to `output`, the
            rendezvous is held by another program, or the program's own complaint.
        WorkerError: a rank failed otherwise.
        SystemExit: with `REQUEUE`: ranks were asked to stop; with 128 and the signal's number: one ended the job.
    """
    if nproc < 1:
        raise ValueError(f"nproc is {nproc}; it must be at least 1")
    if (nodes == "1") != (rendezvous is None):
        raise ValueError(
            f"nodes is {nodes!r}, rendezvous {rendezvous!r}; several machines need both: --nodes N --rendezvous "
            "HOST:PORT, HOST being one of them, and one machine neither"
        )
    with _rank_environment(nproc):
        if "RANK" in os.environ:
            importlib.import_module(PROGRAMS[program]).main(list(args))
            return
        with _locked(output if nodes == "1" else None):
            if rendezvous is None and nproc == 1 and max_restarts == 0:
                importlib.import_module(PROGRAMS[program]).main(list(args))
                return
            with rendezvous_of_machines(nodes, rendezvous, output) if rendezvous and output else local_rendezvous() as arguments:
                _run_ranks([*arguments, *_ranks(program, args, nproc, max_restarts)])


def _ranks(program: Program, args: Sequence[str], nproc: int, max_restarts: int) -> list[str]:
    return [
        f"--nproc-per-node={nproc}",
        f"--max-restarts={max_restarts}",
        f"--signals-to-handle={','.join(FORWARDED)}",
        # without `--` torchrun takes `--run` for an abbreviation of its own `--run-path`
        "-m",
        PROGRAMS[program],
        "--",
        *args,
    ]


@contextlib.contextmanager
def _locked(output: Path | None) -> Iterator[None]:
    """Holds the job's folder here, from before torch is imported to after the last restart of the ranks."""
    if output is None:
        yield
        return
    with folder_lock(output), environment({LOCKED: str(output.absolute())}):
        yield


def _rank_environment(nproc: int) -> contextlib.AbstractContextManager[None]:
    """Splits the cores among the ranks and lets idle threads sleep, where the environment does not say otherwise."""
    cores = len(os.sched_getaffinity(0))
    settings = {"OMP_WAIT_POLICY": "PASSIVE"} | ({"OMP_NUM_THREADS": str(max(1, cores // nproc))} if nproc > 1 else {})
    return environment({name: value for name, value in settings.items() if name not in os.environ})


def _run_ranks(torchrun_args: list[str]) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        # without a folder of ours, what ranks say of their errors would be left in a folder of torchrun's own
        with _handlers_put_back(), tempfile.TemporaryDirectory(prefix="prectr-", ignore_cleanup_errors=True) as logs:
            run(parse_args([f"--log-dir={logs}", *torchrun_args]))
    except ChildFailedError as error:
        rank, failure = _cause(error)
        if failure.exitcode == REQUEUE:
            raise SystemExit(REQUEUE) from None
        if _recorded(failure):
            kind = ValueError if failure.exitcode == MISTAKE else WorkerError
            raise kind(f"rank {rank}: {failure.error_file_data['message']['message']}") from None
        reason = failure.message if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        raise WorkerError(f"rank {rank} failed ({reason}); its own output is above") from None
    except SignalException as stopped:
        raise SystemExit(REQUEUE if stopped.sigval in SIGNALS else 128 + stopped.sigval) from None


@contextlib.contextmanager
def _handlers_put_back() -> Iterator[None]:
    """torchrun leaves its handlers of signals behind: this process, and what it forks, would not end by them."""
    before = {number: signal.getsignal(number) for number in (signal.Signals[name] for name in FORWARDED)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # what is not Python's own cannot be put back
                    signal.signal(number, handler)


def _cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The failure that the others follow from. Not the first complaint: ranks that lost another one may complain before that one
    is missed, and those that wait for it are ended by torchrun, with SIGTERM and, where they do not hear it, with SIGKILL."""
    said = {rank: f.error_file_data["message"]["message"] for rank, f in error.failures.items() if _recorded(f)}
    own = {rank: error.failures[rank] for rank, message in said.items() if not _LOST.match(message)}
    silent = {rank: f for rank, f in error.failures.items() if rank not in said and f.exitcode != -signal.SIGTERM}
    causes = own or silent or error.failures
    rank = min(causes, key=lambda rank: causes[rank].timestamp)
    return rank, causes[rank]


def _recorded(failure: ProcessFailure) -> bool:
    """Whether `record` around the program's main left a message."""
    return isinstance(failure.error_file_data["message"], dict)


def main(argv: Sequence[str] | None = None) -> None:
    """A job on this machine as a scheduler starts it: `... MODULE -- ARGUMENTS`, by the module of the program."""
    die_with_parent()
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--max-restarts", type=int, default=0)
    parser.add_argument("module", choices=PROGRAMS.values())
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args(argv)
    words = given.arguments[1:] if given.arguments[:1] == ["--"] else given.arguments
    program = next(program for program, module in PROGRAMS.items() if module == given.module)
    launch(program, words, given.nproc, output=None if program == "evaluate" else _output(words), max_restarts=given.max_restarts)


def _output(words: Sequence[str]) -> Path | None:
    """The folder that these arguments name for writing."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run-dir", "--run", "--out", dest="folder", type=Path)
    return parser.parse_known_args(words)[0].folder


if __name__ == "__main__":
    run_command(main)
