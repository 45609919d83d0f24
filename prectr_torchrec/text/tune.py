"""`prectr teacher-tune`: any encoder becomes a cross-encoder that grades pairs, fine-tuned on the grades of a file of pairs.

The loop stops and goes on exactly: the batches follow from seed and epoch, and a checkpoint holds weights, optimizer, random
state and the best weights so far, written aside and renamed.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prectr_torchrec.checkpoints.safe_reader import load_state
from prectr_torchrec.config.base import Section
from prectr_torchrec.config.run import validate_section
from prectr_torchrec.data.pairs.pairs import PairsFile
from prectr_torchrec.distributed.process import quiet_libraries, random_states, set_random_states
from prectr_torchrec.modules import from_folder, grade_distributions
from prectr_torchrec.runs.rates import decay, warmup
from prectr_torchrec.runs.workspace import apply_umask, build_if_absent, file_digest, folder_digest, open_output, replacing
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.locks import writes_folder
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.system.progress import Now, quiet
from prectr_torchrec.text.batches import pad_batch, shuffled_batches, to_device, token_batches
from prectr_torchrec.text.teacher import (
    MIN_LENGTH,
    accepted_inputs,
    check_model_folder,
    kept_tokens,
    settle_padding,
    tokenize_pairs,
)

MANIFEST = "tune.json"
"""Written last: a tuned folder without it is unfinished."""


SAVED = {"model", "optimizer", "random", "step", "best", "best_loss", "best_step", "waited"}
"""Of an unfinished tuning."""


class TuneConfig(Section):
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(32, ge=1)
    lr: float = Field(8e-5, gt=0)
    """Peak rate of AdamW, with linear warm-up and decay to zero."""
    head_lr: float = Field(1e-3, gt=0)
    """Of the new head."""
    warmup: float = Field(0.05, ge=0, le=0.5)
    """Share of all steps, a half at most."""
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    max_length: int = Field(128, ge=MIN_LENGTH)
    """Tokens kept of a pair, or fewer where the encoder has fewer positions."""
    negatives: float = Field(0.25, ge=0)
    """Drawn pairs of other categories per graded pair, taken as level 1, if there are so many. What is graded was mostly found
    relevant before: a teacher that saw nothing else hardly knows level 1 when it meets any other pair."""
    validations: int = Field(2, ge=1)
    """Measurements of the validation split per epoch; the best one's weights are kept."""
    patience: int = Field(3, ge=1)
    """Measurements without a better one after which it stops."""
    validation_pairs: int = Field(4096, ge=1)
    """Pairs measured at most."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between two checkpoints."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: weights stay fp32, products are taken in bf16."""
    seed: int = 1


def tuning_config(overrides: Sequence[str]) -> TuneConfig:
    """The default configuration with `key=value` overrides.

    Raises:
        ConfigError: unknown key or wrong value.
    """
    values: dict[str, str] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override!r}: write it as key=value")
        values[key] = value
    return validate_section(TuneConfig, values, "--set")


@only_local
@writes_folder("out")
def tune_teacher(teacher: Path, pairs: Path, out: Path, config: TuneConfig, device: torch.device | None = None) -> dict[str, Any]:
    """Fine-tunes a sequence classifier on the train split's grades and saves it in Hugging Face layout.

    The label of a pair is a distribution over the two levels that its grade lies between (`grade_distributions`).

    Args:
        teacher: folder of any Hugging Face encoder; a head of K labels that is there goes on, else a new one begins.
        pairs: file of pairs.
        out: folder to write; may hold an unfinished tuning with the same settings, which then goes on.
        config: how.
        device: None: the GPU if there is one.

    Returns:
        What `out/tune.json` holds: `level_grades`, `steps`, `steps_per_epoch`, `best_step`, `validation_loss` and the `settings`.

    Raises:
        ValueError: no grades to learn from, no such teacher, or `out` holds something else.
    """
    source = PairsFile.open(pairs)
    check_model_folder(teacher)
    quiet_libraries()
    tuner = None
    if not (out / MANIFEST).is_file():  # what cannot be tuned is refused before the folder is claimed for it
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        tuner = _Tuner(teacher, source, out / "work" / "checkpoint.pt", config, device)
    settings = {"teacher": folder_digest(teacher), "pairs": file_digest(pairs), **config.model_dump(mode="json")}
    if (finished := open_output(out, out / "work", out / MANIFEST, settings)) is not None:
        return finished
    assert tuner is not None
    result = {**tuner.run(), "level_grades": source.level_grades().tolist(), "settings": settings}
    tuner.save(out)
    apply_umask(out)
    build_if_absent(out / MANIFEST, lambda path: path.write_text(json.dumps(result, indent=1), encoding="utf-8"))
    shutil.rmtree(out / "work")
    return result


class _Tuner:
    def __init__(self, teacher: Path, pairs: PairsFile, checkpoint: Path, config: TuneConfig, device: torch.device) -> None:
        self.config, self.checkpoint, self.device = config, checkpoint, device
        self.tokenizer: PreTrainedTokenizerBase = from_folder(AutoTokenizer, teacher)
        torch.manual_seed(config.seed)
        self.model: PreTrainedModel = from_folder(
            AutoModelForSequenceClassification,
            teacher,
            num_labels=pairs.levels.count,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
        self.padding, self.accepted = settle_padding(self.model, self.tokenizer), accepted_inputs(self.model)
        config = config.model_copy(update={"max_length": kept_tokens(self.model, config.max_length)})
        self.train = _Labelled(pairs, "train", self.tokenizer, config)
        self.validation = _Labelled(pairs, "validation", self.tokenizer, config, config.validation_pairs)
        self.model.to(device)
        self.optimizer = torch.optim.AdamW(self._groups(), weight_decay=config.weight_decay)
        self.per_epoch = -(-len(self.train.lengths) // config.batch_size)
        self.total = config.epochs * self.per_epoch
        self.step, self.best_step, self.waited = 0, 0, 0
        self.best_loss = float("inf")
        self.best: dict[str, Tensor] = {}

    def run(self) -> dict[str, Any]:
        """Trains to the end, or to where the validation stops it."""
        if self.checkpoint.exists():
            self._load()
        every = max(1, self.per_epoch // self.config.validations)
        began, begun_at, now = time.perf_counter(), self.step, Now()
        for rows in self._batches():
            if self.waited >= self.config.patience:
                break
            loss = self._train_step(rows)
            self.step += 1
            if (self.step % 50 == 0 and now.due()) or self.step == self.total:
                seconds = (time.perf_counter() - began) / (self.step - begun_at)
                self._say(
                    f"loss {loss:.4f}  {self.config.batch_size / seconds:,.0f} pairs/s  "
                    f"{seconds * (self.total - self.step) / 60:.1f} min left"
                )
            if (self.step % every == 0 and self.step + every <= self.total) or self.step == self.total:
                self._validate()
            if self.step % self.config.checkpoint_every == 0 or self.step == self.total:
                self._save()
        return {
            "steps": self.step,
            "steps_per_epoch": self.per_epoch,
            "best_step": self.best_step,
            "validation_loss": self.best_loss,
        }

    def save(self, out: Path) -> None:
        self.model.load_state_dict(self.best)
        self.model.save_pretrained(str(out))
        self.tokenizer.save_pretrained(str(out))

    def _groups(self) -> list[dict[str, Any]]:
        """Encoder and head, each with and without weight decay, which biases and norms are spared."""
        body = {id(p) for p in self.model.base_model.parameters()}
        groups: list[dict[str, Any]] = []
        for of_body, rate in ((True, self.config.lr), (False, self.config.head_lr)):
            own = [p for p in self.model.parameters() if (id(p) in body) == of_body]
            groups.append({"params": [p for p in own if p.dim() > 1], "rate": rate})
            groups.append({"params": [p for p in own if p.dim() <= 1], "rate": rate, "weight_decay": 0.0})
        return groups

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        """All batches from this step on."""
        for epoch in range(self.step // self.per_epoch, self.config.epochs):
            rng = np.random.default_rng([self.config.seed, epoch])
            yield from shuffled_batches(self.train.lengths, self.config.batch_size, rng)[self.step - epoch * self.per_epoch :]

    def _train_step(self, rows: NDArray[np.int64]) -> float:
        self.model.train()
        factor = warmup(self.step, self.total, round(self.config.warmup * self.total)) * decay(self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        loss = self._loss(self.train, rows)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if not math.isfinite(value := loss.item()):
            raise ValueError(f"the loss is {value} at step {self.step}; lower lr, and choose another --out")
        return value

    def _loss(self, data: _Labelled, rows: NDArray[np.int64]) -> Tensor:
        padded = pad_batch(data.inputs, rows, self.padding, left=False)
        batch = {name: to_device(values, self.device) for name, values in padded.items() if name in self.accepted}
        with self._autocast():
            logits = self.model(**batch).logits
        return F.cross_entropy(logits.float(), to_device(data.targets[rows], self.device))

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    @torch.no_grad()
    def _validate(self) -> None:
        if not len(self.validation.lengths):
            self.best, self.best_step = self._weights(), self.step
            return
        self.model.eval()
        sums = [float(self._loss(self.validation, rows)) * len(rows) for rows in token_batches(self.validation.lengths, 8192)]
        loss = sum(sums) / len(self.validation.lengths)
        self.waited += 1
        if loss < self.best_loss:
            self.best, self.best_loss, self.best_step, self.waited = self._weights(), loss, self.step, 0
        self._say(f"validation loss {loss:.4f}  best {self.best_loss:.4f} at step {self.best_step}")

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(self.device),
            "step": self.step,
            "best": self.best,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "waited": self.waited,
        }
        with replacing(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        state = load_state(self.checkpoint, SAVED)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_states(state["random"])
        self.step, self.best, self.best_loss = state["step"], state["best"], state["best_loss"]
        self.best_step, self.waited = state["best_step"], state["waited"]

    def _say(self, text: str) -> None:
        if not quiet():
            print(f"step {self.step} of {self.total}  {text}", file=sys.stderr, flush=True)


class _Labelled:
    """The graded pairs of a split and its negatives, tokenised.

    Args:
        limit: pairs at most, spread evenly over the split.
    """

    def __init__(
        self, pairs: PairsFile, split: str, tokenizer: PreTrainedTokenizerBase, config: TuneConfig, limit: int | None = None
    ) -> None:
        table = pairs.read(["query", "title", "relevance", "source"], split)
        graded = table.filter(table["relevance"].is_valid())
        if split == "train" and not graded.num_rows:
            raise ValueError(f"{pairs.path}: no graded pair in the train split; a teacher is tuned on grades")
        negatives = _spread(table.filter(pc.equal(table["source"], "other_category")), round(config.negatives * graded.num_rows))
        lowest = pa.array(np.full(negatives.num_rows, pairs.levels.grade_min, np.float32))
        table = pa.concat_tables([graded, negatives.set_column(2, "relevance", lowest)])
        table = table if limit is None else _spread(table, limit)
        self.inputs = tokenize_pairs(tokenizer, table["query"].to_pylist(), table["title"].to_pylist(), config.max_length)
        self.lengths = [len(ids) for ids in self.inputs["input_ids"]]
        grades = table["relevance"].to_numpy()
        self.targets = grade_distributions(torch.tensor(grades), torch.from_numpy(pairs.level_grades()))


def _spread(table: pa.Table, count: int) -> pa.Table:
    """`count` rows at most, evenly over the table."""
    return table if table.num_rows <= count else table.take(np.linspace(0, table.num_rows - 1, count).astype(np.int64))
