"""Which checkpoint loads into which sharding: what can be moved, and why the rest cannot, known before any tensor is read.

Weights move between all numbers of ranks and sharding types, and so does element-wise Adagrad's state. Row-wise Adagrad keeps
one number a row and block of columns, which says nothing of other blocks. The sorted lists of managed ids can be joined, not
split: ids are dealt to the ranks by range, and nothing says that a range has as many ids as its rank has rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from prectr_torchrec.config import ConfigError, RunConfig
from prectr_torchrec.distributed.sharding import Plan

_SORTED_IDS = "_mch_sorted_raw_ids"

Extent = tuple[int, int]
"""Offset and size along one axis."""


def check_loadable(saved: Metadata, state: Mapping[str, Any], source: object) -> None:
    """Refuses a checkpoint that cannot be loaded into these shards.

    Args:
        saved: what the checkpoint says of its tensors.
        state: `model`, and `optimizer` where its state is wanted too: sharded tensors to load into.
        source: what the checkpoint is called in errors.

    Raises:
        ConfigError: names every table that cannot be moved, why, and what can be done.
    """
    tensors = {name: about for name, about in saved.state_dict_metadata.items() if isinstance(about, TensorStorageMetadata)}
    problems = []
    for name, value in state["model"].items():
        about = tensors.get(f"model.{name}")
        if about is None:
            problems.append(f"{name} is not in it")
        elif tuple(about.size) != tuple(value.size()):
            problems.append(f"{name} is {_by(about.size)} in it and {_by(value.size())} here")
        elif name.endswith(_SORTED_IDS):
            problems += _split_ids(name.split(".")[-2], _saved_extents(about, 0), _extents(value, 0))
    for name, states in state.get("optimizer", {}).get("state", {}).items():
        weight = name.removeprefix("fused.")
        here = state["model"].get(weight)
        if f"model.{weight}" not in tensors or not isinstance(here, ShardedTensor):
            continue
        if any(isinstance(value, ShardedTensor) and len(value.size()) == 1 for value in states.values()):
            problems += _other_blocks(weight.split(".")[-2], _saved_extents(tensors[f"model.{weight}"], 1), _extents(here, 1))
    if problems:
        raise ConfigError(f"{source} cannot be loaded here: " + "; ".join(problems))


def movable(config: RunConfig, saved: Plan) -> RunConfig:
    """The configuration with sharding left open as far as the state of the saved plan's tables can be moved."""
    config = config.model_copy(deep=True)
    for tables in saved.values():
        for name, sharding in tables.items():
            table, by_columns = config.tables[name], sharding["sharding_type"] == "column_wise"
            if table.optimizer == "rowwise_adagrad":
                table.sharding = [kind for kind in table.sharding if (kind == "column_wise") == by_columns]
    return config


def _split_ids(table: str, saved: list[Extent], here: list[Extent]) -> list[str]:
    if {start for start, _ in here} <= {start for start, _ in saved}:
        return []
    ranks = len(saved)
    return [f"tables.{table}: its managed ids were dealt to {ranks} ranks, whose lists can be joined and not split; take {ranks} "
            "ranks or a divisor of it"]  # fmt: skip


def _other_blocks(table: str, saved: list[Extent], here: list[Extent]) -> list[str]:
    if saved == here:
        return []
    then, now = ("+".join(str(size) for _, size in blocks) for blocks in (saved, here))
    return [f"tables.{table}: its row-wise Adagrad state has a number for each row of {then} columns, and one for each "
            f"of {now} is needed here; keep its sharding (tables.{table}.sharding, --plan), or train with "
            f"tables.{table}.optimizer 'adagrad', whose state can be moved"]  # fmt: skip


def _saved_extents(saved: TensorStorageMetadata, axis: int) -> list[Extent]:
    """Distinct extents of the shards along an axis."""
    return sorted({(chunk.offsets[axis], chunk.sizes[axis]) for chunk in saved.chunks})


def _extents(tensor: ShardedTensor, axis: int) -> list[Extent]:
    return sorted({(shard.shard_offsets[axis], shard.shard_sizes[axis]) for shard in tensor.metadata().shards_metadata})


def _by(size: Iterable[int]) -> str:
    return " x ".join(map(str, size)) or "one number"
