"""Ten steps of the same run with rows and communication of each precision on the ranks of torchrun."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist
from small_run import small_config
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from prectr_torchrec.config import RunConfig, StageConfig
from prectr_torchrec.data.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.training.optimizers import reset_tables
from prectr_torchrec.training.trainer import build_sharded

STEPS = 10
STAGE = StageConfig(epochs=1, lr=1e-3, encoder_lr=5e-4, table_lr=0.05, warmup_steps=3)
SETTINGS = {
    "fp32": {},
    "fp16 rows": {"dtype": "fp16"},
    "fp16 vectors": {"communication": {"forward": "fp16", "backward": "fp16"}},
    "int8 vectors": {"communication": {"forward": "int8", "backward": "int8"}},
}


def print_losses(data: str, run: str, sharding: str | None) -> None:
    """Prints the mean loss over the ranks at each step, by setting."""
    losses = {}
    with process_group("cpu") as process:
        for name, settings in SETTINGS.items():
            config = small_config(sharding, communication=settings.get("communication", {}))
            for table in config.tables.values():
                table.dim = 32
                table.dtype = settings.get("dtype", "fp32")
            losses[name] = _train(config, Path(data), Path(run), process)
        if process.rank == 0:
            print(f"losses {json.dumps(losses)}")


def _train(config: RunConfig, data: Path, run: Path, process: Process) -> list[float]:
    torch.manual_seed(5)
    model, optimizers, _ = build_sharded(config, run, process)
    reset_tables(model, optimizers, seed=process.rank)
    pipeline = TrainPipelineSparseDist(model, optimizers.combined, process.device)
    reader = SearchReader(
        config, data, "train", data / TOKENIZER, rank=process.rank, world_size=process.world_size, shuffle=True, seed=3
    )
    batches = iter([batch for epoch in range(1) for batch in reader.epoch(epoch)][:STEPS])
    model.train()
    losses = []
    for step in range(STEPS):
        optimizers.set_rates(STAGE, step, STEPS)
        losses.append(pipeline.progress(batches)["loss"])
    total = torch.stack(losses)
    dist.all_reduce(total)
    return (total / process.world_size).tolist()
