"""The process group of a job."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from prectr_torchrec.distributed.lost_ranks import lost_ranks_named
from prectr_torchrec.system.doctor import quiet_deprecations
from prectr_torchrec.system.failures import MISTAKE, describe, exit_code
from prectr_torchrec.system.job_environment import STORE, environment
from prectr_torchrec.system.orphans import die_with_launcher


class Process(NamedTuple):
    rank: int
    world_size: int
    device: torch.device


def run_rank(main: Callable[[], None]) -> None:
    """Runs the program of a rank that a launcher started; a user's mistake ends it with `MISTAKE`."""
    die_with_launcher()
    try:
        main()
    except Exception as error:
        code = exit_code(error) or 1
        if code == MISTAKE:
            print(f"error: rank {os.environ.get('RANK', 0)}: {describe(error)}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        if torch.cuda.is_initialized():  # NCCL's destructors too may wait for ranks that never come
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        raise SystemExit(code) from None


@contextlib.contextmanager
def process_group(
    device: Literal["auto", "cpu", "cuda"] = "auto", timeout: timedelta = timedelta(minutes=10)
) -> Iterator[Process]:
    """Joins the process group that the launcher describes in the environment, alone if there is none; leaves it at the end.

    Yields:
        rank, world size and this rank's device: a GPU of its own with NCCL, or, with fewer GPUs than ranks, the CPU with gloo.

    Raises:
        ValueError: `cuda` is asked for with fewer GPUs than ranks, or hosts differ in it.
        LostRanks: a collective operation failed; names the ranks that did not answer.
    """
    quiet_libraries()
    ranks, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if device == "cuda" and gpus < ranks:
        raise ValueError(f"train.device: 'cuda' needs a GPU a rank; here are {ranks} ranks and {gpus} GPUs; use 'cpu' or 'auto'")
    on_gpu = device != "cpu" and gpus >= ranks
    if device == "auto" and 0 < gpus < ranks:
        print(
            f"note: {ranks} ranks and {gpus} GPUs on this host: the ranks work on the CPU; train.device=cuda makes it an error",
            file=sys.stderr,
            flush=True,
        )
    local = int(os.environ.get("LOCAL_RANK", 0))
    here = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(here)
        torch.set_float32_matmul_precision("high")  # TF32: several times the speed of plain fp32
    with environment(_interfaces()):
        _join("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout)
        agreed = False
        try:
            with lost_ranks_named(timeout):
                check_same_devices(on_gpu)
                yield Process(dist.get_rank(), dist.get_world_size(), here)
            agreed = True
        except SystemExit:  # asked to stop: all ranks have agreed on it
            agreed = True
            raise
        finally:
            # models and pipelines are full of cycles; what they hold of the group goes now, not at the interpreter's end
            gc.collect()
            if agreed or not on_gpu:  # NCCL would wait here for the ranks that this one's error has left alone
                dist.destroy_process_group()


def _interfaces() -> dict[str, str]:
    """Settings that keep ranks which are all on this machine to its loopback: nobody else need reach them."""
    if int(os.environ.get("WORLD_SIZE", 1)) != int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
        return {}
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    names = (f"{library}_SOCKET_IFNAME" for library in ("GLOO", "NCCL"))
    return {name: loopback for name in names if name not in os.environ}


def _join(backend: str, timeout: timedelta) -> None:
    size = int(os.environ.get("WORLD_SIZE", 1))
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    elif STORE in os.environ:
        store = dist.FileStore(f"{os.environ[STORE]}.{os.environ['TORCHELASTIC_RESTART_COUNT']}", size)
        dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=size, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)


def check_same_devices(on_gpu: bool) -> None:
    """Raises ValueError where some ranks work on GPUs and others do not: they would wait for each other; collective."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, on_gpu)
    if len(set(found)) > 1:
        cpu = [rank for rank, gpu in enumerate(found) if not gpu]
        raise ValueError(f"ranks {cpu} have no GPU of their own, the others have; start as many ranks a host as each has GPUs")


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of this rank's random generators: `cpu`, and `cuda` where it works on a GPU."""
    return {"cpu": torch.get_rng_state(), **({"cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else {})}


def set_random_states(states: dict[str, torch.Tensor]) -> None:
    """Goes on from `random_states`."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Neither bars nor notes while a folder is loaded or written; afterwards Transformers speaks as before."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def quiet_tracing() -> None:
    """What torch.fx says, once a process, of a question that TorchRec's own code asks it for each batch."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Notes between PyTorch's, TorchRec's and Transformers' own parts, which no user of a job can act on; their errors stay."""
    quiet_deprecations()
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(torch|torchrec|torchmetrics)\.")
    quiet_tracing()
    for name in ("torchrec", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # of Transformers, for files of a moment
