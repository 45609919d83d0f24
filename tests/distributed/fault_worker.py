"""Faults that a job's own ranks cause and see, one after the other on the ranks of torchrun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_config
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from prectr_torchrec.config import RunConfig
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.training.trainer import Trainer


def fault_config(epochs: int = 1, **train: Any) -> RunConfig:
    stages = [{"split": "train", "epochs": epochs, "lr": 0.003, "warmup_steps": 2}]
    return small_config(train={"stages": stages, "validation": False, **train})


def walk(data: str, planted: str, runs: str) -> None:
    """Every case on the same ranks; prints the names of those that held."""
    cases: dict[str, Callable[[Path, Path, Process], None]] = {
        "stop": stops_and_names_the_row, "skip": skips_on_all_ranks, "explosion": skips_an_explosion_but_not_for_ever,
    }  # fmt: skip
    with process_group("cpu") as process:
        for name, case in cases.items():
            folder = Path(data if name == "explosion" else planted)
            case(folder, Path(runs) / name, process)
            print(f"rank {process.rank} held: {name}")


def stops_and_names_the_row(data: Path, run: Path, process: Process) -> None:
    trainer = Trainer(fault_config(), data, run, process)
    with pytest.raises(ValueError, match=r"bad loss at step \d+ \(stage train, epoch 0\): rank \d: loss nan, ") as raised:
        trainer.train()
    assert f"{data}/train/part-00001.parquet row 5." in str(raised.value)


def skips_on_all_ranks(data: Path, run: Path, process: Process) -> None:
    trainer = Trainer(fault_config(on_bad_loss="skip"), data, run, process)
    skipped = check_steps(trainer)
    trainer.train()
    assert len(skipped) == 1
    assert all(value.isfinite().all() for value in state_of(trainer).values())


def skips_an_explosion_but_not_for_ever(data: Path, run: Path, process: Process) -> None:
    trainer = Trainer(fault_config(on_bad_loss="skip", max_loss=1e-3, max_skipped=2), data, run, process)
    skipped = check_steps(trainer)
    with pytest.raises(ValueError, match=r"More than train.max_skipped = 2 batches in a row") as raised:
        trainer.train()
    assert len(skipped) == 3
    assert "rank 0: loss" in str(raised.value) and "rank 1: loss" in str(raised.value)


def check_steps(trainer: Trainer) -> list[int]:
    """Holds, at each step to come, that a bad batch leaves everything as it was and any other one does not."""
    progress, skipped = trainer.pipeline.progress, list[int]()

    def checked(source: Any) -> Any:
        before = state_of(trainer)
        report = progress(source)
        after = state_of(trainer)
        unmoved = before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
        assert unmoved == trainer.guard.bad
        if trainer.guard.bad:
            skipped.append(trainer.position["step"])
        return report

    trainer.pipeline.progress = checked  # type: ignore[method-assign]
    return skipped


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of this rank's weights and of both optimizers' states."""
    return {
        f"{kind} {name}": tensor.clone()
        for kind, tree in (("model", trainer.model.state_dict()), ("state", trainer.optimizers.combined.state_dict()["state"]))
        for name, value in flat(tree).items()
        for tensor in local(value)
    }


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {name: value for key, part in tree.items() for name, value in flat(part, f"{prefix}/{key}").items()}


def local(value: Any) -> list[Tensor]:
    return [shard.tensor for shard in value.local_shards()] if isinstance(value, ShardedTensor) else [torch.as_tensor(value)]
