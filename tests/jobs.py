"""Training jobs as a user starts them: `prectr train` in a process of its own, and what its run directory holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from forked import Forked, rank_environments
from ranks import descendants
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from prectr_torchrec.config.files import dump_config
from prectr_torchrec.config.run import RunConfig


def start_training(config: RunConfig, data: Path, run: Path, *options: str, ranks: int = 2) -> subprocess.Popen[str]:
    """`prectr train`, which starts its ranks by torchrun; what it says goes into `run.log`, one start after the other."""
    command = [sys.executable, "-m", "prectr_torchrec.cli", *_words(config, data, run), "--nproc", str(ranks), *options]
    with run.with_suffix(".log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)


def start_ranks(config: RunConfig, data: Path, run: Path, ranks: int = 2, **variables: str) -> Forked:
    """`prectr train` as a launcher starts it on each rank; what they say goes into `run.log`, one start after the other.

    Args:
        variables: of their environment.
    """
    environments = rank_environments(ranks, run.parent) if ranks > 1 else [{}]
    environments = [environment | variables for environment in environments]
    return Forked("forked:prectr", [tuple(_words(config, data, run))] * ranks, environments, run.with_suffix(".log"))


def _words(config: RunConfig, data: Path, run: Path) -> list[str]:
    run.parent.mkdir(parents=True, exist_ok=True)
    written = run.with_suffix(".yaml")
    written.write_text(dump_config(config), encoding="utf-8")
    return ["train", "--config", str(written), "--data", str(data), "--run", str(run)]


def finish(process: subprocess.Popen[str], run: Path, code: int = 0) -> str:
    """Waits for the end; returns what was said since the first start."""
    process.wait(timeout=240)
    output = run.with_suffix(".log").read_text(encoding="utf-8")
    assert process.returncode == code, (process.returncode, output[-6000:])
    return output


def train(config: RunConfig, data: Path, run: Path, *, ranks: int = 2, code: int = 0) -> str:
    """Trains to the end on `start_ranks`; returns what was said since the first start."""
    job = start_ranks(config, data, run, ranks)
    assert job.wait() == code, (job.poll(), job.printed[-6000:])
    return job.printed


def signal_at(step: int, number: signal.Signals, process: subprocess.Popen[str], run: Path, rank: int | None = None) -> None:
    """Sends a signal to the launcher, or to one rank of it, once the run has logged a step.

    Raises:
        AssertionError: the job ended first; carries what it said.
        TimeoutError: it hangs.
    """

    for _ in range(24_000):
        assert process.poll() is None, run.with_suffix(".log").read_text(encoding="utf-8")[-6000:]
        if last_step(run) >= step:
            os.kill(process.pid if rank is None else _rank(process.pid, rank), number)
            return
        time.sleep(0.01)
    raise TimeoutError(f"step {step} was not reached")


def last_step(run: Path) -> int:
    """The last one that `metrics.jsonl` speaks of."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def saved_step(run: Path) -> int:
    """Of the last checkpoint."""
    name = json.loads((run / "checkpoints" / "index.json").read_text(encoding="utf-8"))["last"]
    return int(name.removeprefix("step-"))


def last_checkpoint(run: Path) -> dict[str, Any]:
    """Model, both optimizers and random states, flattened."""
    name = json.loads((run / "checkpoints" / "index.json").read_text(encoding="utf-8"))["last"]
    whole = run / f"{name}.pt"
    dcp_to_torch_save(run / "checkpoints" / name, whole)
    return _flat(torch.load(whole, weights_only=False))


def assert_same_end(run: Path, other: Path, tolerance: float = 0.0) -> None:
    """Holds that two runs ended in the same weights, optimizer and random states, bit for bit if there is no tolerance."""
    ours, theirs = last_checkpoint(run), last_checkpoint(other)
    assert ours.keys() == theirs.keys() and any("momentum1" in key for key in ours) and any("exp_avg" in key for key in ours)
    unequal = [name for name, value in ours.items() if not _equal(value, theirs[name], tolerance)]
    assert unequal == []


def _equal(value: Any, other: Any, tolerance: float) -> bool:
    if not isinstance(value, torch.Tensor):
        return bool(value == other)
    return torch.equal(value, other) or bool(tolerance and torch.allclose(value, other, atol=tolerance, rtol=tolerance))


def _rank(launcher: int, rank: int) -> int:
    wanted = f"RANK={rank}".encode()
    found = [pid for pid in descendants(launcher) if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    return found[0]  # its reader workers, which have its environment, come after it


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {name: value for key, part in tree.items() for name, value in _flat(part, f"{prefix}/{key}").items()}
