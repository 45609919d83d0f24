"""Ten steps of the same run with rows and communication of each precision on the ranks of torchrun."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from distributed.parity_worker import batches_of, train_steps
from small_run import small_config, small_numbers
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.distributed.sharding import PlainShardingPlan
from prectr_torchrec.training.optimizers import reset_tables
from prectr_torchrec.training.sharded import build_sharded

STEPS = 10
SETTINGS = {
    "fp32": {},
    "fp16 rows": {"dtype": "fp16"},
    "fp16 vectors": {"communication": {"forward": "fp16", "backward": "fp16"}},
    "int8 vectors": {"communication": {"forward": "int8", "backward": "int8"}},
}


def print_losses(data: str, run: str, sharding: str | None) -> None:
    """Prints the mean loss over the ranks at each step, by setting."""
    losses, plan = {}, None
    with process_group("cpu") as process:
        for name, settings in SETTINGS.items():
            config = small_config(sharding, communication=settings.get("communication", {}))
            for table in config.tables.values():
                table.dim = 32
                table.dtype = settings.get("dtype", "fp32")
            losses[name], plan = _train(config, Path(data), Path(run), process, plan)
        if process.rank == 0:
            print(f"losses {json.dumps(losses)}")


def _train(
    config: RunConfig, data: Path, run: Path, process: Process, plan: PlainShardingPlan | None
) -> tuple[list[float], PlainShardingPlan]:
    """By one plan for all: where a table lies decides which rows it starts with."""
    torch.manual_seed(5)
    model, optimizers, plan = build_sharded(config, run, process, plan, numbers=small_numbers(config))
    reset_tables(model, optimizers, process.rank, config.tables)
    pipeline = TrainPipelineSparseDist(model, optimizers.combined, process.device)
    model.train()
    batches = batches_of(config, str(data), process.rank, process.world_size)[:STEPS]
    return train_steps(pipeline, optimizers, batches, STEPS).tolist(), plan
