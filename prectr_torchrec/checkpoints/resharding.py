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

from prectr_torchrec.checkpoints.names import parameter_name
from prectr_torchrec.config.tables import TableConfig
from prectr_torchrec.distributed.sharding import PlainShardingPlan
from prectr_torchrec.system.errors import ConfigError

_SORTED_IDS = "_mch_sorted_raw_ids"


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
    problems: dict[str, list[str]] = {}  # why -> tables or tensors

    def refuse(what: str, why: str | None) -> None:
        if why is not None:
            problems.setdefault(why, []).append(what)

    for name, value in state["model"].items():
        about, table = tensors.get(f"model.{name}"), name.split(".")[-2]
        if about is None:
            refuse(*_missing(name, tensors))
        elif tuple(about.size) != tuple(value.shape):
            refuse(parameter_name(name), f"{_by(about.size)} there and {_by(value.shape)} here")
        elif name.endswith(_SORTED_IDS):
            refuse(f"tables.{table}", _split_ids(saving_ranks(saved), value))
        elif "optimizer" in state and isinstance(value, ShardedTensor) and _row_wise_state(name, tensors):
            refuse(f"tables.{table}", _other_blocks(about, value))
    if problems:
        reasons = "; ".join(f"{', '.join(dict.fromkeys(names))}: {why}" for why, names in problems.items())
        raise ConfigError(f"{source} cannot be loaded here: {reasons}")


def saving_ranks(saved: Metadata) -> int:
    """How many ranks saved a checkpoint: each left the state of its random generators."""
    return len({name.split(".")[1] for name in saved.state_dict_metadata if name.startswith("random.")})


def movable(tables: dict[str, TableConfig], saved: PlainShardingPlan) -> dict[str, TableConfig]:
    """The tables with sharding left open as far as the state of the saved plan's can be moved."""
    moved = {name: table.model_copy() for name, table in tables.items()}
    for planned in saved.values():
        for name, sharding in planned.items():
            table, by_columns = moved[name], sharding["sharding_type"] == "column_wise"
            if table.optimizer == "rowwise_adagrad":
                table.sharding = [kind for kind in table.sharding if (kind == "column_wise") == by_columns]
                if by_columns:
                    table.shard_columns = sharding["shards"][0][1]
    return moved


def _missing(name: str, saved: Iterable[str]) -> tuple[str, str]:
    """What is missing, and why."""
    parts = name.split(".")
    if parts[0] != "embeddings":
        return parameter_name(name), "not in it"
    table = f"tables.{parts[-2]}"
    if not any(f".{parts[-2]}.weight" in other for other in saved):
        return table, "not in it"
    there, here = ("hashed", "managed") if ".managed_" in name else ("managed", "hashed")
    return table, f"the ids are {there} there and {here} here, and have other rows"


def _split_ids(ranks: int, here: ShardedTensor) -> str | None:
    rows = here.shape[0]
    if all(shard.shard_offsets[0] * ranks % rows == 0 for shard in here.metadata().shards_metadata):
        return None
    return f"managed ids that were dealt to {ranks} ranks have lists that can be joined, not split; take as many or a divisor"


def _row_wise_state(weight: str, saved: Mapping[str, TensorStorageMetadata]) -> bool:
    """Read off what was saved: of the optimizer's state here a rank knows its own tables only."""
    prefix = f"optimizer.state.fused.{weight}."
    return any(name.startswith(prefix) and len(about.size) == 1 for name, about in saved.items())


def _other_blocks(saved: TensorStorageMetadata, here: ShardedTensor) -> str | None:
    blocks_saved = {(chunk.offsets[1], chunk.sizes[1]) for chunk in saved.chunks}
    blocks_here = {(shard.shard_offsets[1], shard.shard_sizes[1]) for shard in here.metadata().shards_metadata}
    if blocks_saved == blocks_here:
        return None
    then, now = ("+".join(str(width) for _, width in sorted(blocks)) for blocks in (blocks_saved, blocks_here))
    return (
        f"row-wise Adagrad's state has a number for each row of {then} columns, and one for each of {now} is needed here; keep "
        "the sharding of the run (tables.*.sharding, --plan), or train with tables.*.optimizer 'adagrad', whose state moves"
    )


def _by(size: Iterable[int]) -> str:
    return " x ".join(map(str, size)) or "one number"
