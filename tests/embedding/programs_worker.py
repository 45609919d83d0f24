"""The programs of docs/embedding, one after the other on the ranks of torchrun."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from prectr_torchrec.distributed.process import process_group

PROGRAMS = Path(__file__).parents[2] / "docs" / "embedding"


def run_programs(data: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {"dlrm": (), "text_tower": (), "prectr": (), "reader": (Path(data),)}
    with process_group("cpu") as process:
        for name, given in arguments.items():
            model, losses = load(name).main(*given)
            check_sharded(model, process.world_size)
            first, last = (sum(part) / len(part) for part in (losses[:10], losses[-10:]))
            assert last < first - 0.07, f"{name} does not learn: {first:.3f} -> {last:.3f}"
            if process.rank == 0:
                print(f"{name} learns: {first:.3f} -> {last:.3f}")
            dist.barrier()


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"embedding_{name}", PROGRAMS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def check_sharded(model: Any, ranks: int) -> None:
    """Every rank holds a part of the tables and none of them is replicated."""
    tables = [table for module in model.plan.plan.values() for table in module.values()]
    assert tables and all(table.sharding_type != "data_parallel" for table in tables)
    assert {rank for table in tables for rank in table.ranks} == set(range(ranks))
