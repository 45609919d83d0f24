"""Faults that a job's own ranks cause and see, one after the other on the ranks of torchrun."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_run import small_config
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from prectr_torchrec.checkpoints.disk import SaveError
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.distributed.lost_ranks import LostRanks, lost_ranks_named
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.distributed.stop import Stopped
from prectr_torchrec.training.trainer import Trainer


def fault_config(epochs: int = 1, workers: int = 0, **train: Any) -> RunConfig:
    stages = [{"split": "train", "epochs": epochs, "lr": 0.003, "warmup_steps": 2}]
    return small_config(train={"stages": stages, "validation": False, **train}, batch={"workers": workers})


def walk(data: str, planted: str, uneven: str, runs: str) -> None:
    """Every case on the same ranks; prints the names of those that held."""
    cases: dict[str, Callable[[Path, Path, Process], None]] = {
        "stop": stops_and_names_the_row,
        "skip": skips_on_all_ranks,
        "explosion": skips_an_explosion_but_not_for_ever,
        "weights": saves_no_broken_weights,
        "disk": a_full_disk_loses_nothing_saved,
        "uneven": trains_on_uneven_data,
        "signal": stops_when_one_rank_is_asked_to_and_goes_on,
        "gone": names_a_rank_that_is_gone,
    }
    with process_group("cpu") as process:
        for name, case in cases.items():
            folder = {"stop": planted, "skip": planted, "uneven": uneven}.get(name, data)
            case(Path(folder), Path(runs) / name, process)
            print(f"rank {process.rank} held: {name}", flush=True)


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


def saves_no_broken_weights(data: Path, run: Path, process: Process) -> None:
    trainer = Trainer(fault_config(), data, run, process)
    with torch.no_grad():
        next(iter(trainer.optimizers.dense.params.values())).flatten()[0] = torch.nan
    with pytest.raises(ValueError, match=r"weight \S+ is not finite at step 0; it is not saved"):
        trainer._save()
    with torch.no_grad():
        next(iter(trainer.optimizers.dense.params.values())).flatten()[0] = 0.0
        if process.rank == 1:
            item = next(table for name, table in trainer.model.state_dict().items() if ".item." in name)
            item.local_shards()[0].tensor[-1, -1] = torch.inf
    with pytest.raises(ValueError, match=r"tables\.item is not finite at step 0; it is not saved"):
        trainer._save()
    assert not (run / "checkpoints").exists()


def a_full_disk_loses_nothing_saved(data: Path, run: Path, process: Process) -> None:
    """Files of this process may not grow beyond 16 KiB from the second save on."""
    trainer = Trainer(fault_config(checkpoint_every=3), data, run, process)
    save = trainer.checkpoints.save

    def full(*arguments: Any) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if arguments[1]["step"] == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
        save(*arguments)
        assert arguments[1]["step"] == 3

    trainer.checkpoints.save = full  # type: ignore[method-assign]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = r"rank 1: .*File too large.*it needs [\d,]+ bytes, [\d,]+ are free; the one before, step-000000003, stands"
    with pytest.raises(SaveError, match=said) as why:
        trainer.train()
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    needed = int(str(why.value).partition("it needs ")[2].partition(" bytes")[0].replace(",", ""))
    dist.barrier()
    folders = [path for path in (run / "checkpoints").iterdir() if path.is_dir()]
    assert [path.name for path in folders] == ["step-000000003"]
    written = sum(path.stat().st_size for path in folders[0].glob("*.distcp"))
    assert written <= needed < 2 * written
    Trainer(fault_config(checkpoint_every=3, timeout=500, on_bad_loss="skip"), data, run, process).train()  # may change


def trains_on_uneven_data(data: Path, run: Path, process: Process) -> None:
    """One request: rank 0 has nothing, and feeds empty batches."""
    trainer = Trainer(fault_config(epochs=2), data, run, process)
    assert trainer.readers["train"].num_batches(0) == process.rank
    before = state_of(trainer)
    trainer.train()
    after = state_of(trainer)
    assert trainer.position["step"] == 2
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def stops_when_one_rank_is_asked_to_and_goes_on(data: Path, run: Path, process: Process) -> None:
    undisturbed = Trainer(fault_config(epochs=2), data, run / "whole", process)
    undisturbed.train()
    trainer = Trainer(fault_config(epochs=2), data, run / "stopped", process)
    progress = trainer.pipeline.progress

    def signalled(source: Any) -> Any:
        if process.rank == 1 and trainer.position["step"] == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return progress(source)

    trainer.pipeline.progress = signalled  # type: ignore[method-assign]
    with pytest.raises(Stopped) as stopped:
        trainer.train()
    assert stopped.value.code == 75 and trainer.checkpoints.progress()["step"] == 5
    resumed = Trainer(fault_config(epochs=2), data, run / "stopped", process)
    resumed.train()
    expected, found = state_of(undisturbed), state_of(resumed)
    assert expected.keys() == found.keys() and all(torch.equal(value, found[name]) for name, value in expected.items())


def names_a_rank_that_is_gone(data: Path, run: Path, process: Process) -> None:
    """The last case: afterwards rank 0 is alone."""
    if process.rank == 1:
        print("rank 1 held: gone", flush=True)
        os._exit(0)
    with pytest.raises(LostRanks, match=r"rank 1 did not answer .*train.timeout"), lost_ranks_named(timedelta(seconds=60)):
        dist.barrier()


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
