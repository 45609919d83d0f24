"""`prectr distill`: a small text side learns relevance from a teacher's soft grades, then from grades.

Stage 1, on the pairs that a teacher scored: `T^2 * KL(teacher_T || student_T)`, optionally with the cosine distance of a
projection to the teacher's hidden state. Stage 2, on graded pairs: cross-entropy on the level. After each epoch the pairs of
the validation queries are measured, and the best epoch is kept. It is a plain loop with checkpoints, as training is, and no
Hugging Face `Trainer`: two stages, early stopping on a ranking measure and exact resumption on several ranks are shorter so.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from prectr_torchrec.config import DistillConfig, RunConfig
from prectr_torchrec.config_files import load_config
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.data.workspace import claim, once
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.modules import TextRelevance
from prectr_torchrec.text.build import build_relevance
from prectr_torchrec.text.pair_data import PairBatch, PairData, read_pairs, teacher_targets
from prectr_torchrec.text.scores import read_teacher_scores
from prectr_torchrec.text.student import judge, predict, save_student
from prectr_torchrec.text.tokenizer import load_tokenizer, train_tokenizer, write_document_frequency
from prectr_torchrec.training.metrics import relevance_metrics
from prectr_torchrec.training.progress import MetricsLog, Throughput

MANIFEST = "distill.json"
"""Written last: `measures` of the splits, where grades came from, and the `settings`."""


class Targets(NamedTuple):
    """What the pairs of a batch are taught."""

    level: Tensor
    """(B,) int64 in 0..K, 0: no grade."""
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
        out = judge(self.relevance, batch)
        terms: dict[str, Tensor] = {}
        loss = out.log_pi.new_zeros(())
        if not self.teaching:
            terms["cross_entropy"] = F.nll_loss(out.log_pi, targets.level - 1)
            loss = loss + terms["cross_entropy"]
        weight = 1.0 if self.teaching else self.config.teacher_weight
        if weight and targets.teacher is not None:
            terms["divergence"] = divergence(out.log_pi, targets.teacher, self.config.temperature)
            loss = loss + weight * terms["divergence"]
        if self.project is not None and targets.hidden is not None:
            terms["hidden"] = (1 - F.cosine_similarity(self.project(out.hidden), targets.hidden.float(), dim=1)).mean()
            loss = loss + self.config.hidden_weight * terms["hidden"]
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


def divergence(log_pi: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 * KL(teacher_T || student_T)` of distributions softened by T, mean over the rows that the teacher has scored.

    Args:
        log_pi: (B, K) the student's log probabilities.
        teacher: (B, K) probabilities, NaN where there are none.
        temperature: T.
    """
    seen = ~teacher.isnan().any(1)
    soft = (teacher.nan_to_num(1.0).clamp(min=1e-8).log() / temperature).log_softmax(1)
    row = F.kl_div((log_pi / temperature).log_softmax(1), soft, reduction="none", log_target=True).sum(1)
    return temperature**2 * (row * seen).sum() / seen.sum().clamp(min=1)


class Stage(NamedTuple):
    name: str
    rows: NDArray[np.int64]
    """Of the train pairs."""
    epochs: int
    lr: float


class Distiller:
    """Trains a student through its stages on the ranks of the process group, from its checkpoint if there is one.

    Args:
        config: the run; reads `distill`, `text`, `data.levels` and the relevance tower of `model`.
        data: the pairs.
        teacher: (n, K) of each pair, NaN where there are none; None: grades alone.
        hidden: (n, D) of the teacher.
        out: result folder; holds `work/` until the end.
        process: this rank.

    Raises:
        ValueError: nothing to learn from, or nothing to validate on.
    """

    def __init__(
        self, config: RunConfig, data: PairData, teacher: NDArray[np.float32] | None, hidden: NDArray[Any] | None, out: Path,
        process: Process,
    ) -> None:  # fmt: skip
        self.config, self.settings, self.data, self.process, self.out = config, config.distill, data, process, out
        self.teacher, self.hidden = teacher, hidden
        self.level = grade_levels(data.grade, config.data.levels.boundaries)
        self.scored: NDArray[np.bool_] = np.zeros(len(data), dtype=bool)
        if teacher is not None:
            self.scored = ~np.isnan(teacher[:, 0])
        self.stages = self._stages()
        torch.manual_seed(self.settings.seed)  # the same student on all ranks
        self.relevance = build_relevance(config, out / "work" / "tokenizer").to(process.device)
        torch.manual_seed(self.settings.seed * 1_000 + process.rank)  # dropout differs between ranks
        self.position = {"step": 0, "stage": 0, "epoch": 0, "batch": 0, "stale": 0}
        self.best: dict[str, Any] = {"measure": -math.inf, "weights": None}
        self.checkpoint = out / "work" / "checkpoint.pt"

    def train(self) -> TextRelevance:
        """Runs what is left of the stages and returns the best student."""
        saved = torch.load(self.checkpoint, weights_only=False) if self.checkpoint.exists() else None
        if saved is not None:
            self.position, self.best = saved["position"], saved["best"]
        total = sum(stage.epochs * self._batches(stage) for stage in self.stages)
        self.throughput = Throughput(total_steps=total, done=self.position["step"])
        self.log = MetricsLog(self.out, self.position["step"]) if self.process.rank == 0 else None
        for number in range(self.position["stage"], len(self.stages)):
            self._run_stage(number, saved)
            saved = None
        if self.log is not None:
            self.log.close()
        self.relevance.load_state_dict(self.best["weights"])
        return self.relevance

    def _stages(self) -> list[Stage]:
        train, settings = self.data.split == "train", self.settings
        taught, graded = np.flatnonzero(train & self.scored), np.flatnonzero(train & (self.level > 0))
        if not len(taught) and not len(graded):
            raise ValueError("no pair of the train split has a grade or a teacher's score: nothing to learn from")
        if self.teacher is not None and not len(taught):
            raise ValueError("the teacher has scored none of the train pairs; were its scores made from another file of pairs?")
        known = self.scored | (self.level > 0)
        self.validation = np.flatnonzero((self.data.split == "validation") & known)
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
        for batch, rows in enumerate(self._rows(number, epoch)):
            if batch < start:
                continue
            set_rate(optimizer, stage.lr, epoch * batches + batch, stage.epochs * batches, settings.warmup_steps)
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

    def _rows(self, number: int, epoch: int) -> Iterator[NDArray[np.int64]]:
        """This rank's rows of each batch; all batches are full, the last one begins the epoch's order anew."""
        stage, size = self.stages[number], self.settings.batch_size
        order = np.random.default_rng((self.settings.seed, number, epoch)).permutation(stage.rows)
        order = np.resize(order, (self._batches(stage), self.process.world_size, size))
        yield from order[:, self.process.rank]

    def _batches(self, stage: Stage) -> int:
        return -(-len(stage.rows) // (self.settings.batch_size * self.process.world_size))

    def _targets(self, rows: NDArray[np.int64]) -> Targets:
        given = (self.level.astype(np.int64), self.teacher, self.hidden)
        return Targets(*(None if x is None else torch.from_numpy(x[rows]).to(self.process.device) for x in given))  # type: ignore[arg-type]

    def _validate(self) -> None:
        """Measures the validation queries and keeps the student if it is the best yet."""
        predicted = self.predict(self.validation)
        figures = self.measure(self.validation, predicted)
        # graded pairs speak for themselves; without any, the teacher does
        measure = figures["spearman"] if figures["spearman"] is not None else -figures["divergence"]
        better = measure > self.best["measure"]
        if better:
            self.best = {"measure": measure, "weights": copy.deepcopy(self.relevance.state_dict())}
        self.position["stale"] = 0 if better else self.position["stale"] + 1
        if self.log is not None:
            numbers = {name: value for name, value in figures.items() if value is not None}
            self.log.write({"step": self.position["step"], "validation": numbers})

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
        levels = self.config.data.levels
        figures = relevance_metrics(
            predicted, self.data.grade[rows], self.data.query_id[rows], boundaries=levels.boundaries,
            grade_range=(levels.grade_min, levels.grade_max),
        )  # fmt: skip
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
        dist.all_gather_object(random, random_states())
        if self.process.rank == 0:
            state = {"position": self.position, "best": self.best, "task": task.state_dict(), "random": random}
            temporary = self.checkpoint.with_suffix(".saving")
            torch.save(state | {"optimizer": optimizer.state_dict()}, temporary)
            os.replace(temporary, self.checkpoint)
        dist.barrier()


def set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, total_steps: int, warmup_steps: int) -> None:
    """Linear warm-up, then linear decay to zero."""
    warmup = min(1.0, (step + 1) / max(min(warmup_steps, total_steps // 5), 1))
    for group in optimizer.param_groups:
        group["lr"] = peak * warmup * (total_steps - step) / total_steps


def random_states() -> dict[str, Tensor]:
    return {"cpu": torch.get_rng_state(), **({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})}


def set_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def distill(
    config: RunConfig, pairs: Path, out: Path, process: Process, *, teacher_scores: Sequence[Path] = (),
    tokenizer: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Distils a student; collective. A folder that holds an unfinished one is gone on with.

    Args:
        config: the run; reads `distill`, `text`, `data.levels` and the relevance tower of `model`.
        pairs: file of pairs.
        out: result folder: encoder and tokenizer in Hugging Face layout, the relevance side, `distill.json`, `metrics.jsonl`.
        process: this rank.
        teacher_scores: folders of `prectr teach`, averaged; none: grades alone.
        tokenizer: folder to take the tokenizer from; None: that of `text.path`, or one trained on the pairs.

    Returns:
        What `distill.json` holds.

    Raises:
        ValueError: unusable pairs or scores, or `out` holds something else.
    """
    work = out / "work"
    given = tokenizer or (Path(config.text.path) if config.text.path else None)
    settings = _settings(config, pairs, teacher_scores, given, process.world_size)
    answer: list[Any] = [None]
    if process.rank == 0:
        answer = [_attempt(lambda: claim(out, work, out / MANIFEST, settings))]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], ValueError):
        raise answer[0]
    if answer[0] is not None:
        return dict(answer[0])
    table = read_pairs(pairs)
    if process.rank == 0:
        once(work / "tokenizer", lambda folder: _write_tokenizer(table, given, config.text.vocab_size, folder))
    dist.barrier()
    teacher, hidden = None, None
    if teacher_scores:
        teacher, hidden = teacher_targets(table, read_teacher_scores(teacher_scores), config.data.levels.count)
    text = config.text
    data = PairData(table, work / "tokenizer", text.query_tokens, text.title_tokens, process.device)
    distiller = Distiller(config, data, teacher, hidden, out, process)
    student = distiller.train()
    measures = {}
    for split in ("validation", "test"):
        rows = np.flatnonzero((data.split == split) & ((distiller.level > 0) | distiller.scored))
        measures[split] = distiller.measure(rows, distiller.predict(rows))
    parameters = sum(p.numel() for p in student.parameters())
    found = {"measures": measures, "parameters": parameters, "grades_from": str(pairs), "settings": settings}
    found["teachers"] = [json.loads((folder / "teach.json").read_text()) for folder in teacher_scores]
    if process.rank == 0:
        shutil.copytree(work / "tokenizer", out, dirs_exist_ok=True)
        save_student(out, student, config)
        once(out / MANIFEST, lambda path: path.write_text(json.dumps(found, indent=1)))
        shutil.rmtree(work)
    dist.barrier()
    return found


def _attempt(work: Any) -> Any:
    """The outcome, or the user's mistake as a value, so that it reaches all ranks."""
    try:
        return work()
    except ValueError as error:
        return error


def _write_tokenizer(pairs: Any, given: Path | None, vocab_size: int, folder: Path) -> None:
    """Trained on the train queries' pairs, whose titles are also counted for document frequencies."""
    train = pairs.filter(pairs["split"].to_numpy(zero_copy_only=False) == "train")
    queries, titles = (sorted(set(train[name].to_pylist())) for name in ("query", "title"))
    if given is None:
        train_tokenizer([*queries, *titles], folder, vocab_size)
    else:
        load_tokenizer(given).save_pretrained(str(folder))
    write_document_frequency(titles, folder)


def _settings(
    config: RunConfig, pairs: Path, scores: Sequence[Path], tokenizer: Path | None, world_size: int
) -> dict[str, Any]:  # fmt: skip
    """What the student depends on."""
    read_pairs(pairs)
    stat = pairs.stat()
    dumped = config.model_dump(mode="json")
    return {
        "distill": dumped["distill"],
        "text": dumped["text"],
        "levels": dumped["data"]["levels"],
        "model": {name: dumped["model"][name] for name in ("text", "match", "relevance_tower", "dropout")},
        "pairs": {"path": str(pairs.absolute()), "size": stat.st_size, "modified": stat.st_mtime_ns},
        "teacher_scores": [str(folder.absolute()) for folder in scores],
        "tokenizer": str(tokenizer.absolute()) if tokenizer else None,
        "ranks": world_size,
    }


@record
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file or the name of a shipped configuration")
    parser.add_argument("--pairs", required=True, type=Path, help="file of pairs")
    parser.add_argument("--teacher-scores", action="append", default=[], type=Path, help="folder of `prectr teach`")
    parser.add_argument("--out", required=True, type=Path, help="result folder; an unfinished one is gone on with")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer, such as that of prepared samples")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting")
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.set)
    with process_group(config.train.device) as process:
        found = distill(
            config, arguments.pairs, arguments.out, process, teacher_scores=arguments.teacher_scores,
            tokenizer=arguments.tokenizer,
        )  # fmt: skip
        if process.rank == 0:
            test = {name: value for name, value in found["measures"]["test"].items() if value is not None}
            print(f"{arguments.out}: {found['parameters']:,} parameters; test queries: {json.dumps(test)}")


if __name__ == "__main__":
    main()
