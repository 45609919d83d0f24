"""The training of a student: a teacher's soft grades first, then grades; measured on the validation queries after each epoch.

Stage 1, on the pairs that a teacher scored: `T^2 * KL(teacher_T || student_T)`, optionally with the cosine distance of a
projection to the teacher's hidden state. Stage 2, on graded pairs: cross-entropy on the grade. It is a plain loop with
checkpoints, as training is, and no Hugging Face `Trainer`: two stages, early stopping on a ranking measure and exact resumption
on several ranks are shorter so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from prectr_torchrec.checkpoints.safe_reader import load_state
from prectr_torchrec.config.data import Levels
from prectr_torchrec.config.text import DistillConfig
from prectr_torchrec.distributed.process import Process, random_states, set_random_states
from prectr_torchrec.metrics import relevance_metrics
from prectr_torchrec.modules import TextRelevance, divergence, grade_distributions
from prectr_torchrec.runs.metrics_log import MetricsLog, Throughput
from prectr_torchrec.runs.rates import decay, warmup
from prectr_torchrec.runs.workspace import replacing
from prectr_torchrec.text.batches import to_device
from prectr_torchrec.text.pair_data import PairBatch, PairData
from prectr_torchrec.text.student import predict, predict_relevance

SAVED = {"position", "best", "task", "random", "optimizer"}
"""Of an unfinished distillation."""


class Targets(NamedTuple):
    """What the pairs of a batch are taught."""

    grade: Tensor
    """(B, K) distributions over the levels that have the grade as their expected grade, NaN without a grade."""
    teacher: Tensor | None
    """(B, K) probabilities, NaN where the teacher did not see the pair."""
    hidden: Tensor | None
    """(B, D) of the teacher."""


class StudentTask(nn.Module):
    """The loss of one stage.

    Args:
        relevance: the student.
        config: weights and temperature.
        teaching: stage 1, from the teacher; else stage 2, from grades.
        hidden_dim: D, width of the teacher's hidden state; 0: none to learn from.
    """

    def __init__(self, relevance: TextRelevance, config: DistillConfig, *, teaching: bool, hidden_dim: int = 0) -> None:
        super().__init__()
        self.relevance, self.config, self.teaching = relevance, config, teaching
        width = relevance.tower.head.in_features
        self.project = nn.Linear(width, hidden_dim) if teaching and hidden_dim and config.hidden_weight else None

    def forward(self, batch: PairBatch, targets: Targets) -> dict[str, Tensor]:
        """Returns: `loss` and its terms."""
        out = predict_relevance(self.relevance, batch)
        terms: dict[str, Tensor] = {}
        loss = out.log_pi.new_zeros(())
        if not self.teaching:
            terms["cross_entropy"] = F.cross_entropy(out.log_pi, targets.grade)
            loss = loss + terms["cross_entropy"]
        weight = 1.0 if self.teaching else self.config.teacher_weight
        if weight and targets.teacher is not None:
            terms["divergence"] = divergence(out.log_pi, targets.teacher, self.config.temperature)
            loss = loss + weight * terms["divergence"]
        if self.project is not None and targets.hidden is not None:
            terms["hidden"] = (1 - F.cosine_similarity(self.project(out.hidden), targets.hidden.float(), dim=1)).mean()
            loss = loss + self.config.hidden_weight * terms["hidden"]
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


class Stage(NamedTuple):
    name: str
    rows: NDArray[np.int64]
    """Of the train pairs."""
    epochs: int
    lr: float


class Distiller:
    """Trains a student through its stages on the ranks of the process group, from its checkpoint if there is one.

    Args:
        config: weights, rates and lengths of the stages.
        levels: of relevance.
        relevance: the student, the same on all ranks.
        data: the pairs.
        level_grades: (K,) the grade that stands for each level.
        teacher: (n, K) of each pair, NaN where there are none; None: grades alone.
        hidden: (n, D) of the teacher.
        out: result folder; holds `work/` until the end.
        process: this rank.
        open_log: from the step that is resumed from; called on rank 0.

    Raises:
        ValueError: nothing to learn from, or nothing to validate on.
    """

    def __init__(
        self,
        config: DistillConfig,
        levels: Levels,
        relevance: TextRelevance,
        data: PairData,
        level_grades: NDArray[np.float64],
        teacher: NDArray[np.float32] | None,
        hidden: NDArray[Any] | None,
        out: Path,
        process: Process,
        open_log: Callable[[int], MetricsLog],
    ) -> None:
        self.open_log = open_log
        self.settings, self.levels, self.level_grades = config, levels, level_grades
        self.relevance, self.data, self.process, self.out = relevance, data, process, out
        self.teacher, self.hidden = teacher, hidden
        self.graded = ~np.isnan(data.grade)
        self.grade = grade_distributions(torch.from_numpy(data.grade), torch.from_numpy(level_grades)).numpy()
        self.scored: NDArray[np.bool_] = np.zeros(len(data), dtype=bool)
        if teacher is not None:
            self.scored = ~np.isnan(teacher[:, 0])
        self.stages = self._stages()
        torch.manual_seed(self.settings.seed * 1_000 + process.rank)  # dropout differs between ranks
        self.position = {"step": 0, "stage": 0, "epoch": 0, "batch": 0, "stale": 0}
        self.best: dict[str, Any] = {"measure": -math.inf, "weights": None}
        self.checkpoint = out / "work" / "checkpoint.pt"

    def train(self) -> TextRelevance:
        """Runs what is left of the stages and returns the best student."""
        saved = load_state(self.checkpoint, SAVED) if self.checkpoint.exists() else None
        if saved is not None:
            self.position, self.best = saved["position"], saved["best"]
        total = sum(stage.epochs * self._batches(stage) for stage in self.stages)
        self.throughput = Throughput(total - self.position["step"])
        self.log = self.open_log(self.position["step"]) if self.process.rank == 0 else None
        finished = False
        try:
            for number in range(self.position["stage"], len(self.stages)):
                self._run_stage(number, saved)
                saved = None
            finished = True
        finally:
            if self.log is not None:
                self.log.close(finished=finished)
        self.relevance.load_state_dict(self.best["weights"])
        return self.relevance

    def _stages(self) -> list[Stage]:
        train, settings = self.data.split == "train", self.settings
        taught, graded = np.flatnonzero(train & self.scored), np.flatnonzero(train & self.graded)
        if not len(taught) and not len(graded):
            raise ValueError("no pair of the train split has a grade or a teacher's score: nothing to learn from")
        if self.teacher is not None and not len(taught):
            raise ValueError("the teacher has scored none of the train pairs; were its scores made from another file of pairs?")
        self.validation = self.rows("validation")
        if not len(self.validation):
            raise ValueError("no pair of the validation split has a grade or a teacher's score: nothing to stop by")
        stages = [
            Stage("teacher", taught, settings.teacher_epochs, settings.lr),
            Stage("grades", graded, settings.grade_epochs, settings.grade_lr if len(taught) else settings.lr),
        ]
        stages = [stage for stage in stages if len(stage.rows) and stage.epochs]
        if not stages:
            raise ValueError("distill.teacher_epochs and distill.grade_epochs leave nothing to do for these pairs")
        return stages

    def _run_stage(self, number: int, saved: dict[str, Any] | None) -> None:
        stage = self.stages[number]
        if self.best["weights"] is not None:
            self.relevance.load_state_dict(self.best["weights"])
        hidden_dim = self.hidden.shape[1] if self.hidden is not None else 0
        task = StudentTask(self.relevance, self.settings, teaching=stage.name == "teacher", hidden_dim=hidden_dim)
        task.to(self.process.device).train()
        trained = [p for p in task.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=stage.lr, weight_decay=self.settings.weight_decay, fused=True)
        if saved is not None:
            task.load_state_dict(saved["task"])
            optimizer.load_state_dict(saved["optimizer"])
            set_random_states(saved["random"][self.process.rank])
        parallel = DistributedDataParallel(task, forward_sync_buffers=False)
        for epoch in range(self.position["epoch"], stage.epochs):
            if self.position["stale"] >= self.settings.patience:
                break
            self._run_epoch(number, epoch, task, parallel, optimizer)
        self.position.update(stage=number + 1, epoch=0, batch=0, stale=0)

    def _run_epoch(
        self, number: int, epoch: int, task: StudentTask, parallel: DistributedDataParallel, optimizer: torch.optim.Optimizer
    ) -> None:
        stage, settings = self.stages[number], self.settings
        batches = self._batches(stage)
        start = self.position["batch"]
        for batch, rows in enumerate(self._order(number, epoch)):
            if batch < start:
                continue
            step, total = epoch * batches + batch, stage.epochs * batches
            for group in optimizer.param_groups:
                group["lr"] = stage.lr * warmup(step, total, settings.warmup_steps) * decay(step, total)
            pairs = self.data.batch(rows)
            report = parallel(pairs, self._targets(rows))
            optimizer.zero_grad()
            report["loss"].backward()
            nn.utils.clip_grad_norm_([p for p in task.parameters() if p.requires_grad], settings.clip_norm)
            optimizer.step()
            self.position.update(step=self.position["step"] + 1, epoch=epoch, batch=batch + 1)
            self.throughput.add({n: t.detach() for n, t in report.items()}, torch.tensor([len(pairs.query_tokens), len(rows)]))
            last = batch + 1 == batches
            save = self.position["step"] % settings.checkpoint_every == 0 and not last
            if save or last or self.position["step"] % settings.log_every == 0:
                self._report(stage, epoch)
            if save:
                self._save(task, optimizer)
        self._validate()
        self.position.update(epoch=epoch + 1, batch=0)
        self._save(task, optimizer)

    def _order(self, number: int, epoch: int) -> Iterator[NDArray[np.int64]]:
        """This rank's rows of each batch; all batches are full, the last one begins the epoch's order anew."""
        stage, size = self.stages[number], self.settings.batch_size
        order = np.random.default_rng((self.settings.seed, number, epoch)).permutation(stage.rows)
        order = np.resize(order, (self._batches(stage), self.process.world_size, size))
        yield from order[:, self.process.rank]

    def _batches(self, stage: Stage) -> int:
        return -(-len(stage.rows) // (self.settings.batch_size * self.process.world_size))

    def _targets(self, rows: NDArray[np.int64]) -> Targets:
        def on_device(values: NDArray[Any]) -> Tensor:
            return to_device(torch.from_numpy(values[rows]), self.process.device)

        teacher = on_device(self.teacher) if self.teacher is not None else None
        return Targets(on_device(self.grade), teacher, on_device(self.hidden) if self.hidden is not None else None)

    def _validate(self) -> None:
        """Measures the validation queries and keeps the student if it is the best yet."""
        predicted = self.predict(self.validation)
        figures = self.measure(self.validation, predicted)
        # graded pairs speak for themselves; without any, or all of one grade, the teacher does
        measure = figures["spearman"] if figures["spearman"] is not None else -figures.get("divergence", math.nan)
        if math.isnan(measure):
            raise ValueError("the graded pairs of the validation split are all of one grade, and no teacher has scored them")
        better = measure > self.best["measure"]
        if better:
            self.best = {"measure": float(measure), "weights": copy.deepcopy(self.relevance.state_dict())}
        self.position["stale"] = 0 if better else self.position["stale"] + 1
        if self.log is not None:
            numbers = {name: value for name, value in figures.items() if isinstance(value, float)}
            self.log.write({"step": self.position["step"], "validation": numbers})

    def rows(self, split: str) -> NDArray[np.int64]:
        """Pairs of a split that have a grade or a teacher's score."""
        return np.flatnonzero((self.data.split == split) & (self.graded | self.scored))

    def predict(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Level probabilities (len(rows), K), shared among the ranks; collective."""
        rank, world_size = self.process.rank, self.process.world_size
        mine = predict(self.relevance, self.data, rows[rank::world_size])
        parts: list[Any] = [None] * world_size
        dist.all_gather_object(parts, mine)
        found = np.zeros((len(rows), mine.shape[1]), dtype=np.float32)
        for part, values in enumerate(parts):
            found[part::world_size] = values
        return found

    def measure(self, rows: NDArray[np.int64], predicted: NDArray[np.float32]) -> dict[str, Any]:
        """Measures of predictions against grades, and `divergence` from the teacher where it has scored the pairs."""
        figures = relevance_metrics(
            predicted,
            self.data.grade[rows],
            self.data.query_id[rows],
            boundaries=self.levels.boundaries,
            level_grades=self.level_grades,
        )
        scored = self.scored[rows]
        if self.teacher is not None and scored.any():
            student, teacher = torch.from_numpy(predicted[scored]), torch.from_numpy(self.teacher[rows][scored])
            figures["divergence"] = float(divergence(student.clamp(min=1e-30).log(), teacher, 1.0))
        return figures

    def _report(self, stage: Stage, epoch: int) -> None:
        line = self.throughput.flush(self.process.device)
        if not math.isfinite(line["loss"]):
            raise ValueError(f"loss is {line['loss']} at step {self.position['step']}; lower distill.lr and use another --out")
        line["pairs_per_second"] = line["samples_per_second"]
        del line["requests_per_second"]
        if self.log is not None:
            self.log.write({"step": self.position["step"], "stage": stage.name, "epoch": epoch, **line})

    def _save(self, task: StudentTask, optimizer: torch.optim.Optimizer) -> None:
        random: list[Any] = [None] * self.process.world_size
        dist.all_gather_object(random, random_states(self.process.device))
        if self.process.rank == 0:
            state = {"position": self.position, "best": self.best, "task": task.state_dict(), "random": random}
            with replacing(self.checkpoint) as temporary:
                torch.save(state | {"optimizer": optimizer.state_dict()}, temporary)
        dist.barrier()
