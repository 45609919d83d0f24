"""The ranker over all ranks: built on their shards, and run without learning."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.distributed.managed import hold_managed
from prectr_torchrec.distributed.process import Process
from prectr_torchrec.distributed.sharding import PlainShardingPlan, plan_sharding, plan_to_dict, sharders
from prectr_torchrec.distributed.workload import build_workload
from prectr_torchrec.modules import ClickTower, Loss, RankingModel, RelevanceTower
from prectr_torchrec.training.freezing import frozen_tables
from prectr_torchrec.training.optimizers import Optimizers, apply_table_optimizers
from prectr_torchrec.training.task import StepReport, build_task


def build_sharded(
    config: RunConfig,
    run: Path,
    process: Process,
    plan: PlainShardingPlan | None = None,
    *,
    kept: bool = True,
    rehearsal: Loss | None = None,
    numbers: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[DistributedModelParallel, Optimizers, PlainShardingPlan]:
    """Plans, where no plan is given, shards and builds the model and its optimizers; collective.

    `kept`: a checkpoint of the run will be loaded. `rehearsal`, `numbers`: as of `build_task`.
    """
    meta = torch.device("meta")
    task = build_task(config, run / TOKENIZER, table_device=meta, kept=kept, rehearsal=rehearsal, numbers=numbers)
    apply_table_optimizers(task.embeddings, config.tables, config.train.stages)
    task.model.to(process.device)
    task.losses.to(process.device)
    sharding = plan_sharding(task, build_workload(config), process.device, plan)
    model = DistributedModelParallel(
        task,
        device=process.device,
        plan=sharding,
        sharders=sharders(config.communication, process.device.type),
        init_data_parallel=process.world_size > 1,  # alone, there are no gradients to average
    )
    hold_managed(model, frozen_tables(config.tables, config.train.freeze))
    requests = config.batch.requests * process.world_size
    return model, Optimizers(model, config.train, requests), plan_to_dict(sharding)


def compile_towers(model: RankingModel) -> None:
    """Compiles a ranker's dense towers in place: parameters keep their names, and a checkpoint or an export its contents."""
    towers = [module for module in model.modules() if isinstance(module, ClickTower | RelevanceTower)]
    if not towers and dist.get_rank() == 0:
        print("note: train.compile changes nothing: the ranker has no tower that is compiled", file=sys.stderr)
    for tower in towers:
        tower.compile()


def evaluate_batches(
    pipeline: TrainPipelineSparseDist[SearchBatch, StepReport],
    model: DistributedModelParallel,
    reader: SearchReader,
    total: int,
) -> Iterator[tuple[SearchBatch, StepReport]]:
    """Runs a reader's split through the model without learning; `total` batches on every rank."""
    model.eval()
    batches: deque[SearchBatch] = deque()
    source = _kept(reader.epoch(0, 0, total), batches)
    with torch.no_grad():
        for _ in range(total):
            report = pipeline.progress(source)
            yield batches.popleft(), report


def _kept(source: Iterator[SearchBatch], batches: deque[SearchBatch]) -> Iterator[SearchBatch]:
    for batch in source:
        batches.append(batch)
        yield batch
