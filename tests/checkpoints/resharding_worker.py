"""Saves small models under every sharding type on one, two and three ranks, and loads each of them into each of these layouts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from small_run import small_config, small_numbers
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from prectr_torchrec.checkpoints.manager import Checkpoints
from prectr_torchrec.checkpoints.stateful import RandomStates
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.distributed.managed import flush_managed
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.training.optimizers import Optimizers
from prectr_torchrec.training.sharded import build_sharded
from prectr_torchrec.training.trainer import Trainer

KINDS = ("row_wise", "table_wise", "column_wise", "managed")
OPTIMIZERS = ("rowwise_adagrad", "adagrad")
RANKS = (1, 2, 3)


def layout_config(kind: str, optimizer: str) -> RunConfig:
    """Few dense parameters: it is the tables that move. 101 rows on three ranks are uneven; blocks of 4 columns."""
    parts = {"interest": None, "taste": None, "personal": None, "statistics": {"whose": ["item"]}}
    model = {"text": False, "mixture": False, "parts": parts}
    tree = small_config("row_wise" if kind == "managed" else kind, model=model).model_dump(mode="json")
    for table in tree["tables"].values():
        table["optimizer"] = optimizer
        if kind == "managed":
            table |= {"ids": "managed", "rows": 24, "buckets": 12, "managed": {"interval": 2}}
    return RunConfig.model_validate(tree)


def train(data: str, run: str) -> None:
    """A run with managed tables."""
    with process_group("cpu") as process:
        Trainer(layout_config("managed", "adagrad"), Path(data), Path(run), process).train()


def move_all(data: str, out: str) -> None:
    """Every rank of three writes to `<rank>.json`: the outcome of each pair that it took part in, `loaded`, or the refusal."""
    rank, outcomes = int(os.environ["RANK"]), {}
    folder = Path(out)
    for ranks in sorted(RANKS, reverse=True):  # all ranks first: TorchRec sets up its checks once in a process
        if rank < ranks:
            with group(folder / f"save{ranks}", rank, ranks) as process:
                for kind, optimizer in layouts():
                    save(folder, Path(data), kind, optimizer, process)
    for ranks in sorted(RANKS, reverse=True):
        if rank < ranks:
            with group(folder / f"load{ranks}", rank, ranks) as process:
                for kind, optimizer in layouts():
                    outcomes |= load_all(folder, Path(data), kind, optimizer, process)
    (folder / f"{rank}.json").write_text(json.dumps(outcomes), encoding="utf-8")


def layouts() -> list[tuple[str, str]]:
    return [(kind, optimizer) for optimizer in OPTIMIZERS for kind in KINDS]


@contextmanager
def group(store: Path, rank: int, ranks: int) -> Iterator[Process]:
    dist.init_process_group("gloo", store=dist.FileStore(str(store), ranks), rank=rank, world_size=ranks)
    yield Process(rank, ranks, torch.device("cpu"))
    dist.destroy_process_group()


def save(folder: Path, data: Path, kind: str, optimizer: str, process: Process) -> None:
    model, optimizers = build(data, kind, optimizer, process)
    fill(model, optimizers)
    if kind == "managed":
        give_rows(model, layout_config(kind, optimizer), data, process)
        torch.save(owned(model, optimizers), folder / f"ids_{optimizer}_{process.world_size}_{process.rank}.pt")
    run = folder / f"{kind}_{optimizer}_{process.world_size}"
    Checkpoints(run).save({"model": model, "optimizer": optimizers, "random": RandomStates(process.device)}, {"step": 1})


def load_all(folder: Path, data: Path, kind: str, optimizer: str, process: Process) -> dict[str, str]:
    model, optimizers = build(data, kind, optimizer, process)
    outcomes = {}
    for saved_kind in KINDS:
        for ranks in RANKS:
            fill(model, optimizers, value=-1.0)
            checkpoints = Checkpoints(folder / f"{saved_kind}_{optimizer}_{ranks}")
            pair = f"{optimizer} {saved_kind}@{ranks} {kind}@{process.world_size}"
            try:
                checkpoints.load("last", {"model": model, "optimizer": optimizers, "random": RandomStates(process.device)})
            except ConfigError as error:
                assert untouched(model, optimizers), f"{pair}: refused, and yet something was read"
                outcomes[pair] = str(error)
                try:
                    checkpoints.load("last", {"model": model})
                except ConfigError as weights_error:
                    outcomes[f"weights {pair}"] = str(weights_error)
                else:
                    assert_filled(model, None)
                    outcomes[f"weights {pair}"] = "loaded"
                continue
            if kind == "managed":
                assert_same_owners(model, optimizers, folder, optimizer, ranks, process)
            else:
                assert_filled(model, optimizers)
            outcomes[pair] = "loaded"
    return outcomes


def build(data: Path, kind: str, optimizer: str, process: Process) -> tuple[DistributedModelParallel, Optimizers]:
    torch.manual_seed(0)
    config = layout_config(kind, optimizer)
    model, optimizers, _ = build_sharded(config, data, process, numbers=small_numbers(config))
    optimizers.init_state()
    return model, optimizers


def parts(model: DistributedModelParallel, optimizers: Optimizers | None) -> Iterator[tuple[str, torch.Tensor, tuple[Any, ...]]]:
    """Name, tensor and region of this rank's shards of weights and optimizer state, and dense tensors."""
    states = optimizers.combined.state_dict()["state"] if optimizers else {}
    named = {**model.state_dict(), **{f"{p}.{name}": value for p, values in states.items() for name, value in values.items()}}
    for name, value in named.items():
        if "managed_collision" in name:
            continue
        if isinstance(value, ShardedTensor):
            for shard in value.local_shards():
                offsets, sizes = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                yield name, shard.tensor, (tuple(value.size()), offsets, sizes)
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            yield name, value, (tuple(value.shape), [0] * value.dim(), list(value.shape))


def expected(name: str, region: tuple[Any, ...]) -> torch.Tensor:
    """What is at a region of a tensor: its own number for each place."""
    size, offsets, sizes = region
    whole = torch.arange(float(torch.Size(size).numel())).view(size) + sum(map(ord, name)) % 97
    for axis, (offset, length) in enumerate(zip(offsets, sizes, strict=True)):
        whole = whole.narrow(axis, offset, length)
    return whole


@torch.no_grad()
def fill(model: DistributedModelParallel, optimizers: Optimizers, value: float | None = None) -> None:
    for name, tensor, region in parts(model, optimizers):
        tensor.copy_(expected(name, region).view_as(tensor) if value is None else torch.full_like(tensor, value))


def untouched(model: DistributedModelParallel, optimizers: Optimizers) -> bool:
    return all((tensor == -1).all() for _, tensor, _ in parts(model, optimizers))


def assert_filled(model: DistributedModelParallel, optimizers: Optimizers | None) -> None:
    seen = 0
    for name, tensor, region in parts(model, optimizers):
        assert torch.equal(tensor, expected(name, region).view_as(tensor)), name
        seen += 1
    assert seen > 5


def give_rows(model: DistributedModelParallel, config: RunConfig, data: Path, process: Process) -> None:
    """Trains a few batches, so that ids have rows."""
    reader = SearchReader(config, data, "train", data / TOKENIZER, rank=process.rank, world_size=process.world_size)
    model.train()
    for batch in islice(reader.epoch(0), 3):
        model(batch)[0].backward()
    flush_managed(model)


def owned(model: DistributedModelParallel, optimizers: Optimizers) -> dict[str, dict[int, tuple[Any, ...]]]:
    """By table, what each id of this rank has: row, step last seen, weights and optimizer state of the row."""
    state, found = model.state_dict(), {}
    fused = optimizers.fused.state_dict()["state"]
    for name, weights in state.items():
        if ".managed_" not in name or not name.endswith(".weight"):
            continue
        table = name.split(".")[-2]
        prefix = f"{name.split('._embedding_module')[0]}._managed_collision_collection._managed_collision_modules.{table}."
        ids, rows, seen = (
            state[prefix + part].local_shards()[0].tensor.tolist()
            for part in ("_mch_sorted_raw_ids", "_mch_remapped_ids_mapping", "_mch_last_access_iter")
        )
        shard = weights.local_shards()[0]
        first = shard.metadata.shard_offsets[0]
        moments = next(iter(fused[name].values())).local_shards()[0].tensor
        found[table] = {
            i: (row, last, shard.tensor[row - first].tolist(), moments[row - first].tolist())
            for i, row, last in zip(ids, rows, seen, strict=True)
            if i != torch.iinfo(torch.int64).max
        }
    return found


def assert_same_owners(
    model: DistributedModelParallel, optimizers: Optimizers, folder: Path, optimizer: str, ranks: int, process: Process
) -> None:
    saved: dict[str, dict[int, Any]] = {}
    for rank in range(ranks):
        for table, owners in torch.load(folder / f"ids_{optimizer}_{ranks}_{rank}.pt").items():
            saved.setdefault(table, {}).update(owners)
    here: list[Any] = [None] * process.world_size
    dist.all_gather_object(here, owned(model, optimizers))
    joined: dict[str, dict[int, Any]] = {}
    for of_rank in here:
        for table, owners in of_rank.items():
            joined.setdefault(table, {}).update(owners)
    assert len(joined) == len(small_config().tables) and all(len(owners) > 5 for owners in joined.values())
    assert joined == saved
