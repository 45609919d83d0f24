"""Starts a job on this machine, one process a rank, and brings home a failing rank's own message."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from prectr_torchrec.training.stop import REQUEUE, SIGNALS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

Program = Literal["train", "evaluate", "teach", "distill"]
PROGRAMS: dict[Program, str] = {
    "train": "prectr_torchrec.training.main",
    "evaluate": "prectr_torchrec.training.evaluate",
    "teach": "prectr_torchrec.text.teach",
    "distill": "prectr_torchrec.text.distill",
}


FORWARDED = ("SIGHUP", "SIGQUIT", *(number.name for number in SIGNALS))
"""Signals that torchrun hands on to the ranks."""


class WorkerError(RuntimeError):
    """A rank failed; the message is the rank's own."""


def launch(
    program: Program,
    args: Sequence[str],
    nproc: int = 1,
    *,
    max_restarts: int = 0,
    nodes: str = "1",
    rendezvous: str | None = None,
) -> None:
    """Runs a program on `nproc` ranks of this machine under torchrun and waits for it.

    One rank that is not to be restarted runs in this process, and so does every rank that a launcher started (`RANK` is set):
    jobs do not nest.

    Args:
        program: which one.
        args: its command-line arguments.
        nproc: ranks on this machine.
        max_restarts: how often all ranks are started again after one has failed.
        nodes: machines of the job, `N` or `MIN:MAX`; the same command runs on each of them.
        rendezvous: `HOST:PORT` of one of the machines, where they meet; needed for more than one.

    Raises:
        ValueError: `nproc` below 1, nodes without a rendezvous, or the program's own complaint.
        WorkerError: a rank failed otherwise.
        SystemExit: with `REQUEUE`: ranks were asked to stop; with 128 and the signal's number: one ended the job.
    """
    if nproc < 1:
        raise ValueError(f"nproc is {nproc}; it must be at least 1")
    if nodes != "1" and rendezvous is None:
        raise ValueError(f"nodes is {nodes!r}; say where they meet: --rendezvous HOST:PORT, HOST being one of them")
    with _rank_environment(nproc):
        if (nproc == 1 and max_restarts == 0 and rendezvous is None) or "RANK" in os.environ:
            importlib.import_module(PROGRAMS[program]).main(list(args))
            return
        meeting = [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous}", "--rdzv-id=prectr"]
        # with torchrun's 60 s a machine that is cut off for longer would close the rendezvous for good once it is back
        meeting.append("--rdzv-conf=read_timeout=600")
        _run_ranks([
            *(meeting if rendezvous else ["--standalone"]), f"--nproc-per-node={nproc}", f"--max-restarts={max_restarts}",
            f"--signals-to-handle={','.join(FORWARDED)}",
            # without `--` torchrun takes `--run` for an abbreviation of its own `--run-path`
            "-m", PROGRAMS[program], "--", *args,
        ])  # fmt: skip


@contextlib.contextmanager
def _rank_environment(nproc: int) -> Iterator[None]:
    """Splits the cores among the ranks, lets idle threads sleep and gives each restart a store of its own, where the
    environment does not say otherwise: ranks that start again in torchrun's own store may meet the addresses of the dead."""
    cores = len(os.sched_getaffinity(0))
    settings = {"OMP_WAIT_POLICY": "PASSIVE", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | (
        {"OMP_NUM_THREADS": str(max(1, cores // nproc))} if nproc > 1 else {}
    )
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

    from prectr_torchrec.distributed.process import MISTAKE

    try:
        run(parse_args(torchrun_args))
    except ChildFailedError as error:
        rank, failure = _cause(error)
        if failure.exitcode == REQUEUE:
            raise SystemExit(REQUEUE) from None
        recorded = failure.error_file_data["message"]
        if isinstance(recorded, dict):  # written by `record` around the program's main
            kind = ValueError if failure.exitcode == MISTAKE else WorkerError
            raise kind(f"rank {rank}: {recorded['message']}") from None
        reason = failure.message if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        raise WorkerError(f"rank {rank} failed ({reason}); its own output is above") from None
    except SignalException as stopped:
        raise SystemExit(REQUEUE if stopped.sigval in SIGNALS else 128 + stopped.sigval) from None


def _cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The failure that the others follow from: a killed rank, since those that it leaves may complain before it is missed."""
    ours = -signal.SIGTERM  # torchrun ends the others with it
    killed = [(rank, failure) for rank, failure in error.failures.items() if failure.exitcode < 0 and failure.exitcode != ours]
    return killed[0] if killed else error.get_first_failure()
