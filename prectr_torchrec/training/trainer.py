"""The training run: build, train, close."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from prectr_torchrec.checkpoints.best import ValidationLoss
from prectr_torchrec.checkpoints.disk import explained_save, num_bytes
from prectr_torchrec.checkpoints.init_from import init_from
from prectr_torchrec.checkpoints.manager import Checkpoints
from prectr_torchrec.checkpoints.resharding import movable
from prectr_torchrec.checkpoints.stateful import Parts, RandomStates
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.train import StageConfig
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader, agree_on_batches
from prectr_torchrec.data.schema import TOKENIZER, check_findings, load_manifest, read_manifest
from prectr_torchrec.distributed.device import check_device, check_trainable
from prectr_torchrec.distributed.managed import flush_managed
from prectr_torchrec.distributed.process import Process
from prectr_torchrec.distributed.sharding import PlainShardingPlan
from prectr_torchrec.distributed.stop import Stopped, StopSignal
from prectr_torchrec.runs.layout import CONFIG
from prectr_torchrec.runs.metrics_log import MetricsLog, Throughput, open_log
from prectr_torchrec.runs.workspace import replace_text
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.system.progress import quiet
from prectr_torchrec.training.freezing import frozen_tables
from prectr_torchrec.training.guard import StepGuard, check_weights
from prectr_torchrec.training.optimizers import Optimizers, reset_tables
from prectr_torchrec.training.rehearsal import Rehearsal
from prectr_torchrec.training.run_directory import differences, open_run_directory
from prectr_torchrec.training.schedule import passes
from prectr_torchrec.training.sharded import build_sharded, compile_towers, evaluate_batches
from prectr_torchrec.training.table_metrics import table_metrics
from prectr_torchrec.training.task import StepReport
from prectr_torchrec.training.validation import Validation, ValidationMetrics, of_all_labels


class Trainer:
    """Trains a run's stages on the ranks of the process group; a run directory that has a checkpoint is resumed.

    Args:
        config: the run.
        data: prepared folder.
        run: run directory, made if absent.
        process: this rank.
        plan: sharding plan to use in place of the planner's.

    Raises:
        ConfigError: the run directory was started with another configuration, or the plan is not for this run and its ranks.
    """

    @only_local
    def __init__(self, config: RunConfig, data: Path, run: Path, process: Process, plan: PlainShardingPlan | None = None) -> None:
        self.config, self.data, self.run, self.process = config, data, run, process
        check_device(config.tables, config.communication, process.device.type, process.world_size)  # before anything is written
        check_trainable(config.tables)
        resumed = run / CONFIG
        manifest = read_manifest(data, config.data, resumed if resumed.exists() else "the configuration")
        rehearsal = self._rehearsal()
        open_run_directory(config, data, run, process)
        self.checkpoints = Checkpoints(run, keep=config.train.keep_checkpoints, in_background=config.train.async_checkpoints)
        self.checkpoints.use_newest_whole()
        self.saved = self.checkpoints.progress()
        if self.saved:
            check_findings(data, run, load_manifest(run))
        torch.manual_seed(config.train.seed)  # the same towers on all ranks
        self.model, self.optimizers, used = self._build(plan, rehearsal, manifest.get("numbers", {}))
        if config.train.compile:
            compile_towers(self.model.module.model)
        self.parts: Parts = {"model": self.model, "optimizer": self.optimizers, "random": RandomStates(process.device)}
        self._reset_tables(epoch=0)  # each rank its own rows: one seed on all would repeat a row-wise table's rows rank by rank
        if not self.saved:
            self.model.module.model.start_from(manifest["examination"], manifest["splits"]["train"]["candidates"])
        if config.train.init_from is not None and not self.saved:
            init_from(config.train.init_from, self.model, config.features, run)
        self.job = {"world_size": process.world_size, "samples": manifest["digest"], "plan": used}
        if rehearsal is not None:
            self.job["rehearsal"] = rehearsal.digests
        torch.manual_seed(config.train.seed * 1_000 + process.rank)  # dropout differs between ranks
        self.stop = StopSignal()
        self.guard = StepGuard(
            self.model,
            self.stop,
            on_bad_loss=config.train.on_bad_loss,
            max_loss=config.train.max_loss,
            max_skipped=config.train.max_skipped,
        )
        self.pipeline = TrainPipelineSparseDist(self.model, self.optimizers.combined, process.device, custom_model_fwd=self.guard)
        self.stages = [stage for stage in config.train.stages if self._has_split(stage)]
        self.readers = {stage.split: self._reader(stage.split, shuffle=True) for stage in self.stages}
        self.log: MetricsLog | None = None
        self.position: dict[str, Any] = {"step": 0, "stage": 0, "epoch": 0, "batch": 0, "earlier": []}

    def train(self) -> None:
        """Runs what is left of the stages.

        Raises:
            Stopped: a rank got a signal to stop; the run is saved and goes on when it is started again.
            ValueError: a loss that is not to be learned from (`train.on_bad_loss`).
        """
        with self.stop:
            finished = False
            try:
                self._train()
                finished = True
            except ValueError:  # what is being written in the background is of a step before it
                self.checkpoints.wait()
                raise
            finally:
                if self.log is not None:
                    self.log.close(finished=finished)

    def _train(self) -> None:
        plan = [self._batches(stage) for stage in self.stages]
        if self.saved:
            self._resume(self.saved)
        self._say_how_long(plan)
        if self.process.rank == 0:
            replace_text(self.run / "plan.json", json.dumps(self.job["plan"], indent=1))
        self.throughput = Throughput(self._steps_left(plan))
        if self.process.rank == 0:
            settings = self.config.model_dump(mode="json")
            self.log = open_log(self.run, self.config.trackers, settings, self.position["step"])
        while self.position["stage"] < len(self.stages):
            number = self.position["stage"]
            for epoch in range(self.position["epoch"], len(plan[number])):
                self._train_epoch(self.stages[number], epoch, plan[number])
            self.position.update(stage=number + 1, epoch=0, batch=0)
        with self._explained():
            self.checkpoints.wait()

    def _say_how_long(self, plan: list[list[int]]) -> None:
        if self.process.rank != 0 or quiet():
            return
        most = self.config.batch.requests * self.process.world_size
        for stage, batches in zip(self.stages, plan, strict=True):
            requests, rates = self.readers[stage.split].num_requests, f"rates x {self.optimizers.factor:.2f}"
            print(
                f"{stage.split}: {requests:,} requests, {len(batches)} passes, {sum(batches):,} steps of up to {most}, {rates}",
                file=sys.stderr,
            )

    def _train_epoch(self, stage: StageConfig, epoch: int, batches: list[int]) -> None:
        start, left = self.position["batch"], self._batches_left(stage, epoch, batches[epoch])
        done = sum(batches[:epoch]) + max(batches[epoch] - left, 0)  # of this stage, before this leg of the epoch
        fresh = start == 0 and not self.position["earlier"]
        if epoch == 0 and fresh:
            self.optimizers.restart()
        if stage.reset_tables and epoch > 0 and fresh:
            self._reset_tables(epoch)
        counts: deque[Tensor] = deque()
        source = _counted(self.readers[stage.split].epoch(epoch, start, left), counts)
        self.model.train()
        for batch in range(start, left):
            self.optimizers.set_rates(stage, done + batch, sum(batches))
            report = self.pipeline.progress(source)
            self.position.update(step=self.position["step"] + 1, epoch=epoch, batch=batch + 1)
            self._count(report, counts.popleft(), stage, epoch, batch)
            last = batch + 1 == left
            save = self.position["step"] % self.config.train.checkpoint_every == 0 and not last
            # a checkpoint ends a line: a resumed run averages over the same steps
            if save or last or self.guard.stopping or self.position["step"] % self.config.train.log_every == 0:
                self._report(stage, epoch)
            if self.guard.stopping:
                self._save_and_stop()
            if save:
                self._save()
        validates = self.config.train.validation and stage.split == "train" and self._has("validation")
        validation = self.validate() if validates else None
        self.position.update(epoch=epoch + 1, batch=0, earlier=[])
        self.readers[stage.split].resume_after(epoch + 1, [])
        self._write({"validation": validation.figures} if validation else {})
        self._save(validation.loss if validation else None)

    def validate(self) -> Validation:
        """Measures the validation split over all ranks.

        Raises:
            Stopped: as `train`; the run goes on with validating.
        """
        reader = self._reader("validation", shuffle=False)
        total = agree_on_batches(reader.num_batches(0))
        metrics = {label: ValidationMetrics(self.process.device, label) for label in self.config.predicted_labels}
        for batch, report in evaluate_batches(self.pipeline, self.model, reader, total):
            for label, of_label in metrics.items():
                of_label.update(batch, logged=report.logged[label], reference=report.ranking[label])
            if self.guard.agree_to_stop(self.process.device):
                self._save_and_stop()
        return of_all_labels(metrics)

    def _count(self, report: StepReport, rows: Tensor, stage: StageConfig, epoch: int, batch: int) -> None:
        if self.guard.bad:
            self.throughput.skip()
            where = f"step {self.position['step']} (stage {stage.split}, epoch {epoch})"
            self.guard.handle_bad_loss(where, self.readers[stage.split].rows(epoch, batch))
        else:
            self.guard.skipped_in_a_row = 0
            self.throughput.add(report.terms, rows)

    def _report(self, stage: StageConfig, epoch: int) -> None:
        if not self.throughput.steps:  # all skipped
            return
        line = self.throughput.flush(self.process.device)
        if stage.split == "judgments":  # pairs without users: no click to speak of
            line = {name: value for name, value in line.items() if name != "consistency" and not name.startswith("bce")}
        rate = max((g["lr"] for g in self.optimizers.dense.param_groups), default=0.0)
        self._write({"stage": stage.split, "epoch": epoch, **line, "lr": rate})

    def _save_and_stop(self) -> None:
        self._save()
        with self._explained():
            self.checkpoints.wait()
        if self.process.rank == 0:
            print(f"stopped at step {self.position['step']}, which is saved; the same command goes on", file=sys.stderr)
        raise Stopped

    def _save(self, validation: ValidationLoss | None = None) -> None:
        flush_managed(self.model)
        check_weights(self.optimizers.dense.params, self.model, f"step {self.position['step']}")
        self._write({"tables": table_metrics(self.model, self.optimizers, self.config.tables)})
        progress = {"step": self.position["step"], "position": self.position, "job": self.job}
        with self._explained():
            self.checkpoints.save(self.parts, progress, validation)

    def _explained(self) -> AbstractContextManager[None]:
        def size() -> int:
            return num_bytes({name: part.state_dict() for name, part in self.parts.items()})

        return explained_save(self.checkpoints.folder, self.checkpoints.index().get("last"), size)

    def _build(
        self, plan: PlainShardingPlan | None, rehearsal: Rehearsal | None, numbers: dict[str, dict[str, Any]]
    ) -> tuple[DistributedModelParallel, Optimizers, PlainShardingPlan]:
        """By the plan given, else by that of the run as far as its ranks and its state allow."""
        config, saved = self.config, self.saved.get("job")
        if saved and plan is None:
            if saved["world_size"] == self.process.world_size:
                plan = saved["plan"]
            else:
                config = config.model_copy(update={"tables": movable(config.tables, saved["plan"])})
        kept = bool(self.saved)
        return build_sharded(config, self.run, self.process, plan, kept=kept, rehearsal=rehearsal, numbers=numbers)

    def _resume(self, saved: dict[str, Any]) -> None:
        """Goes on from the last checkpoint; on other ranks, with what the earlier ones left of the epoch."""
        self._check_same_job(saved["job"])
        self.checkpoints.load("last", self.parts)
        self.position |= saved["position"]
        ranks, here = saved["job"]["world_size"], self.process.world_size
        stage, epoch, batch = (self.position[part] for part in ("stage", "epoch", "batch"))
        if stage == len(self.stages):
            return
        reader = self.readers[self.stages[stage].split]
        reader.resume_after(epoch, self.position["earlier"])
        if ranks == here:
            return
        if batch:
            self.position["earlier"] = [*self.position["earlier"], reader.batches_done(epoch, batch, ranks)]
            self.position["batch"] = 0
            reader.resume_after(epoch, self.position["earlier"])
        torch.manual_seed(self.config.train.seed * 1_000 + self.process.rank + self.position["step"] * 1_000_003)
        if self.process.rank == 0:
            print(f"note: saved by {ranks} ranks at step {self.position['step']}, goes on with {here}", file=sys.stderr)

    def _check_same_job(self, saved: dict[str, Any]) -> None:
        """A position means something for the same samples only; ids in a hash table on a GPU stay on their ranks."""
        different = [d for name in ("samples", "rehearsal") for d in differences(saved.get(name), self.job.get(name), name)]
        if made := self.config.multi_probe_tables():
            different += [f"tables.{min(made)} stays on its ranks: {d}" for d in differences(saved, self.job)]
        if different:
            raise ConfigError(f"{self.run} cannot be resumed by this job ({'; '.join(different)}); use the same or another --run")

    def _batches_left(self, stage: StageConfig, epoch: int, batches: int) -> int:
        """Of an epoch of so many batches, what is left of it since these ranks took it over."""
        return agree_on_batches(self.readers[stage.split].num_batches(epoch)) if self.position["earlier"] else batches

    def _steps_left(self, plan: list[list[int]]) -> int:
        number, epoch = self.position["stage"], self.position["epoch"]
        if number == len(plan) or epoch == len(plan[number]):
            return sum(map(sum, plan[number + 1 :]))
        left = self._batches_left(self.stages[number], epoch, plan[number][epoch]) - self.position["batch"]
        return left + sum(plan[number][epoch + 1 :]) + sum(map(sum, plan[number + 1 :]))

    def _reset_tables(self, epoch: int) -> None:
        seed = self.config.train.seed * 1_000_003 + epoch * 65_537 + self.process.rank
        keep = frozen_tables(self.config.tables, self.config.train.freeze) if epoch > 0 else ()
        reset_tables(self.model, self.optimizers, seed, self.config.tables, keep=keep)
        if epoch > 0 and self.config.train.init_from is not None:  # afresh is as the run began
            tables = {f"tables.{name}" for name in self.config.tables if name not in keep}
            init_from(self.config.train.init_from, self.model, self.config.features, self.run, only=tables)

    def _write(self, values: dict[str, Any]) -> None:
        if self.log is not None and values:
            self.log.write({"step": self.position["step"], **values})

    def _batches(self, stage: StageConfig) -> list[int]:
        reader = self.readers[stage.split]
        epochs = passes(reader.num_requests) if stage.epochs == "auto" else stage.epochs
        return [agree_on_batches(reader.num_batches(epoch)) for epoch in range(epochs)]

    def _reader(self, split: str, *, shuffle: bool) -> SearchReader:
        return SearchReader(
            self.config,
            self.data,
            split,
            self.run / TOKENIZER,
            rank=self.process.rank,
            world_size=self.process.world_size,
            shuffle=shuffle,
            seed=self.config.train.seed,
        )

    def _has(self, split: str) -> bool:
        return any((self.data / split).glob("*.parquet"))

    def _has_split(self, stage: StageConfig) -> bool:
        has = self._has(stage.split) or stage.split == "train"  # without a train split the reader says what is wrong
        if not has and self.process.rank == 0:
            print(f"note: stage {stage.split!r} is left out: {self.data} has no such split", file=sys.stderr)
        learns = stage.split == "train" or "levels" in self.config.model.finds()
        if has and not learns and self.process.rank == 0:
            kind = self.config.model.kind
            print(f"note: stage {stage.split!r} is left out: a ranker of kind {kind!r} has no levels to learn", file=sys.stderr)
        return has and learns and stage.epochs != 0

    def _rehearsal(self) -> Rehearsal | None:
        settings = self.config.losses.rehearsal
        if settings.pairs is None:
            return None
        return Rehearsal(settings, self.config.text, self.config.data.levels, self.data / TOKENIZER, self.process.device)


def _counted(source: Iterator[SearchBatch], counts: deque[Tensor]) -> Iterator[SearchBatch]:
    """The pipeline reads ahead: each batch's rows are noted on the way in, for the step that trains on it."""
    for batch in source:
        counts.append(torch.stack([batch.request_weight.sum(), batch.candidate_weight.sum()]))
        yield batch
