"""Our `din` beside the DIN of torch-rechub: candidates a second in training, and the AUC after as many epochs.

Both see the same rows, ids (hashed by the reader), tables and widths: user, query, item, category and brand, and a history of
`data.history_length` events. One thread each, in one run, in turns:

- ours trains as `prectr train` does, from Parquet, request by request: as configured, with text match, known grades, counters,
  and what happened at each event besides, in batches of 64 requests (as shipped) and of 256; and of 256 on the ids alone; its
  activation unit has the hidden units of torch-rechub's default;
- `dot product` is what `din` was before it was DIN as published: PRECTR with its parts off, one click logit, multi-head target
  attention over the same history;
- torch-rechub's trains by its own `CTRTrainer` on one row a candidate, from arrays made in memory before the clock starts:
  row by row through its own `DataGenerator`, and, in its favour, from whole batches cut out of the arrays. The activation
  unit of its attention has 36 hidden units, its default, or 256 and 128, as in torch-rechub's own example of DIN.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/din.py [--data PREPARED] [--rounds 3] [--epochs 2]

Before that, both models alone, forward and backward, at 6, 20 and 50 candidates a request.

torch-rechub comes with the extra `bench`. Without `--data` it measures on a simulated log, on the requests that show six
candidates. The AUC is that of the clicks of the validation part. Ours is scored with the position held at its reference, so that
neither knows it; torch-rechub's is its best over rates and epochs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from common import describe, endless, median, ratio, simulated_samples, take_turns, train_on
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.ranking import DIN as RechubDIN
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator
from torchrec import JaggedTensor

from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import MANIFEST, TOKENIZER
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.modules import Events, Inputs, LookedUpFeatures, Widths
from prectr_torchrec.modules.rankers.din import DIN, ActivatedInterest
from prectr_torchrec.training.sharded import evaluate_batches
from prectr_torchrec.training.trainer import Trainer

Batches = Iterable[tuple[dict[str, Tensor], Tensor]]

DOT_PRODUCT = (
    "model={kind: prectr, mixture: false, text: false, grade_overrides: false, dropout: 0.0}",
    "losses.anchor.weight=0",
)
IDS_ALONE = ("model.parts={counts: null, statistics: null, grade: null, match: null}", "features.candidate_title_tokens=null")
OURS: dict[str, tuple[int, tuple[str, ...]]] = {
    "ours, 64": (64, ()),
    "ours, 256": (256, ()),
    "ours, 256, ids": (256, (*IDS_ALONE, "tables.title_token=null")),
    "dot product, 64": (64, DOT_PRODUCT),
}
"""Requests a batch, and settings."""
BESIDES = (
    "user_events",
    "user_query_events",
    "query_events",
    "candidate_position",
    "history_level",
    "history_click",
    "history_position",
    "history_age",
)
"""Of our batch, what torch-rechub's DIN has no place for."""
SMALL, LARGE = 384, 2048
"""Rows of a batch of torch-rechub's, as many as ours has as shipped or enough to spread its dense table updates."""
REQUESTS = 64
"""Of a batch of the models alone."""
DEFAULT, EXAMPLE = [36], [256, 128]
"""Hidden units of torch-rechub's attention."""
RATES, WEIGHT_DECAY = (1e-3, 3e-3), 1e-5
"""torch-rechub's default rate is the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a prepared folder with a train and a validation split")
    parser.add_argument("--config", default="din")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="before the AUC; 0 leaves it out")
    parser.add_argument("--requests", type=int, default=40_000, help="of the simulated log")
    parser.add_argument("--turn", type=int, default=4096, help="requests that a turn of ours goes through")
    parser.add_argument("--rows", type=int, default=6144, help="that a turn of torch-rechub's goes through")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, arguments.set)
    with tempfile.TemporaryDirectory() as scratch, process_group("cpu") as process:
        data = arguments.data or simulated_samples(config, Path(scratch), arguments.requests, shown=6)
        print(describe("torch", "fbgemm-gpu-cpu", "torchrec", "torch-rechub"))
        settings = [*arguments.set, f"train.stages.0.epochs={arguments.epochs or 1}", "train.validation=false"]
        config = load_config(arguments.config, settings)
        train, validation = (CandidateRows(config, data, split) for split in ("train", "validation"))

        def trainers(part: str) -> dict[str, Trainer]:
            return {
                name: make_trainer(
                    load_config(arguments.config, [*settings, *own]),
                    *(data, Path(scratch) / part / name, process, requests),
                    ids_alone=name.endswith("ids"),
                )
                for name, (requests, own) in OURS.items()
            }

        compare_models(config, arguments.rounds)
        compare_speed(trainers("speed"), train, arguments)
        if arguments.epochs:
            compare_auc(trainers("auc"), data, train, validation, arguments.epochs)


def make_trainer(config: RunConfig, data: Path, run: Path, process: Process, requests: int, *, ids_alone: bool) -> Trainer:
    most = json.loads((data / MANIFEST).read_text(encoding="utf-8"))["splits"]["train"]["max_candidates"]
    config.batch.requests, config.batch.candidates = requests, requests * most
    trainer = Trainer(config, data, run, process)
    if ids_alone:
        trainer.readers["train"] = cast(SearchReader, IdsAlone(trainer.readers["train"]))
    return trainer


class IdsAlone:
    """A reader, but with all that is in `BESIDES` blanked in its batches."""

    def __init__(self, reader: SearchReader) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def epoch(self, epoch: int, start: int = 0, num_batches: int | None = None) -> Iterator[SearchBatch]:
        for batch in self._reader.epoch(epoch, start, num_batches):
            blank = batch.replaced(**{name: torch.zeros_like(batch[name]) for name in BESIDES if name in batch})
            yield replace(blank, texts={name: torch.zeros_like(tokens) for name, tokens in batch.texts.items()})


class CandidateRows:
    """A split in memory, one row a candidate: ids (N,), a history's (N, L), from 1 on with 0 for padding, and clicks (N,)."""

    def __init__(self, config: RunConfig, data: Path, split: str) -> None:
        self.config = config
        ids: dict[str, list[Tensor]] = {name: [] for name, f in config.features.items() if f.table not in config.bag_tables()}
        clicks, self.num_requests = [], 0
        for batch in SearchReader(config, data, split, data / TOKENIZER).epoch(0):
            real = batch.candidate_weight > 0
            request, features = batch.candidate_request[real], batch.request_features.to_dict()
            for name, parts in ids.items():
                values = features[name].values() + 1
                if not name.startswith("candidate_"):
                    width = config.data.history_length if name.startswith("history_") else 1
                    values = JaggedTensor(values, lengths=features[name].lengths()).to_padded_dense(width)[request].squeeze(1)
                parts.append(values)
            clicks.append(batch["candidate_click"][real])
            self.num_requests += int(batch.request_weight.sum())
        self.ids, self.clicks = {name: torch.cat(parts) for name, parts in ids.items()}, torch.cat(clicks)

    def batches(self, size: int, limit: int | None = None) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Whole batches of a fresh shuffle of the first `limit` rows."""
        order = torch.randperm(limit or len(self.clicks))
        for rows in order.split(size):
            yield {name: values[rows] for name, values in self.ids.items()}, self.clicks[rows]

    def generator(self, size: int, limit: int) -> Batches:
        """torch-rechub's own loader of the first `limit` rows."""
        generator = DataGenerator({name: values[:limit] for name, values in self.ids.items()}, self.clicks[:limit])
        return generator.generate_dataloader(x_val={}, y_val=[0], x_test={}, y_test=[0], batch_size=size)[0]


def compare_models(config: RunConfig, rounds: int) -> None:
    """Forward and backward of both models alone, on the same random ids of whole requests: no reader, no optimizer."""
    config = config.model_copy(deep=True)
    for table in config.tables.values():
        table.rows = 1_000  # dense gradients of large tables would be most of the time
    print(f"models alone on ids, {DEFAULT} hidden units, {REQUESTS} requests, {config.data.history_length} events; candidates/s")
    print(f"{'candidates a request':>22}{'ours':>18}{'torch-rechub':>18}{'ours / this, CPU':>18}")
    for shown in (6, 20, 50):
        ours, theirs = OurModel(config, shown), rechub_trainer(config, DEFAULT, RATES[0]).model.train()
        rows, clicks = ours.rows(), torch.rand(REQUESTS * shown).round()

        def backward(predict: Callable[[], Tensor], clicks: Tensor = clicks) -> int:
            torch.nn.functional.binary_cross_entropy(predict(), clicks).backward()
            return len(clicks)

        rates = take_turns({"ours": partial(backward, ours), "theirs": partial(backward, partial(theirs, rows))}, rounds)
        medians = [f"{median(each).wall:,.0f} ({median(each).cpu:,.0f})" for each in rates.values()]
        print(f"{shown:>22}" + "".join(f"{m:>18}" for m in medians) + f"{ratio(*rates.values()).cpu:>18.2f}", flush=True)


class OurModel:
    """Our DIN on the ids alone, with tables as torch-rechub has them: dense, in one process; called, it scores its batch."""

    def __init__(self, config: RunConfig, shown: int) -> None:
        torch.manual_seed(config.train.seed)
        looked_up = {name: f.table for name, f in config.features.items() if f.table not in config.bag_tables()}
        self.tables = {n: torch.nn.Embedding(config.tables[n].rows + 1, config.tables[n].dim) for n in set(looked_up.values())}
        self.features, self.shown = looked_up, shown
        R, C, L = REQUESTS, REQUESTS * shown, config.data.history_length
        shapes = {"history": (R, L), "candidate": (C,), "request": (R,)}
        self.ids = {n: torch.randint(1, config.tables[t].rows, shapes[family(n)]) for n, t in looked_up.items()}
        self.request = torch.arange(R).repeat_interleave(shown)
        widths = Widths({}, {}, {"history": {}})
        for name, table in looked_up.items():
            {"history": widths.sequences["history"], "candidate": widths.candidate, "request": widths.request}[family(name)][
                stem(name)
            ] = config.tables[table].dim
        compared = {name: widths.compared(name) for name in widths.sequences["history"]}
        interest = ActivatedInterest(compared, config.data.levels.count, hidden=DEFAULT)
        self.model = DIN({"features": LookedUpFeatures(widths)}, interest, tower=config.model.tower).train()

    def rows(self) -> dict[str, Tensor]:
        """A row a candidate, as torch-rechub reads them."""
        return {n: ids if family(n) == "candidate" else ids[self.request] for n, ids in self.ids.items()}

    def __call__(self) -> Tensor:
        R, C = REQUESTS, len(self.request)
        found: dict[str, dict[str, Tensor]] = {"history": {}, "candidate": {}, "request": {}}
        for name, table in self.features.items():
            found[family(name)][stem(name)] = self.tables[table](self.ids[name])
        happened = torch.zeros(next(ids.shape for n, ids in self.ids.items() if family(n) == "history"), dtype=torch.long)
        past = found["history"] | dict.fromkeys(("level", "click", "position", "age"), happened)
        events = Events(past, torch.full((R,), happened.shape[1]))
        inputs = Inputs(found["request"], found["candidate"], {"history": events}, {}, torch.ones(R), self.request, torch.ones(C))
        return self.model(inputs).ranking["click"].log_yes.exp()


def family(name: str) -> str:
    """Of a feature: `history`, `candidate`, or `request`."""
    first = name.partition("_")[0]
    return first if first in ("history", "candidate") else "request"


def stem(name: str) -> str:
    return name if family(name) == "request" else name.partition("_")[2]


def compare_speed(trainers: dict[str, Trainer], train: CandidateRows, arguments: argparse.Namespace) -> None:
    rounds, most = arguments.rounds, min(arguments.rows, len(train.clicks))
    contenders: dict[str, Callable[[], int]] = {}
    for name, trainer in trainers.items():
        trainer.model.train()
        contenders[name] = train_on(trainer, endless(trainer), max(arguments.turn // trainer.config.batch.requests, 1))
    for units, size, rows in ((DEFAULT, SMALL, most), (DEFAULT, LARGE, most), (EXAMPLE, SMALL, min(2 * SMALL, most))):
        contenders[f"torch-rechub {units}, {size} rows"] = rechub_turn(train, units, rows, partial(train.batches, size, rows))
    own = partial(train.generator, LARGE, most)
    contenders[f"torch-rechub {DEFAULT}, {LARGE} rows, DataGenerator"] = rechub_turn(train, DEFAULT, most, own)
    rates = take_turns(contenders, rounds)
    print(
        f"configuration {train.config.name}: {train.num_requests:,} requests, {len(train.clicks):,} candidates "
        f"({len(train.clicks) / train.num_requests:.1f} a request); {rounds} rounds in turns; medians, by CPU time in "
        "brackets; ratios of rates in the same round"
    )
    print(f"{'':46}{'candidates/s':>18}" + "".join(f"{f'{name} / this':>24}" for name in OURS))
    for name, each in rates.items():
        rate, times = median(each), [ratio(rates[ours], each) for ours in OURS]
        columns = "".join(f"{f'{clock.wall:.2f} ({clock.cpu:.2f})':>24}" for clock in times)
        print(f"{name:46}{f'{rate.wall:,.0f} ({rate.cpu:,.0f})':>18}{columns}")


def compare_auc(trainers: dict[str, Trainer], data: Path, train: CandidateRows, validation: CandidateRows, epochs: int) -> None:
    print(f"AUC on {len(validation.clicks):,} candidates of the validation part after {epochs} epochs", flush=True)
    ours = {name: auc_of_ours(trainer, data) for name, trainer in trainers.items()}
    for name, auc in ours.items():
        print(f"{name:46}{auc:.4f}")
    best = 0.0
    for rate in RATES:
        for size in (SMALL, LARGE):
            aucs = aucs_of_rechub(train, validation, rate, size, epochs)
            print(f"{f'torch-rechub {DEFAULT}, {size} rows, rate {rate}':46}{', '.join(f'{a:.4f}' for a in aucs)} by epoch")
            best = max(best, *aucs)
    print(f"{'ours above the best of torch-rechub':46}{', '.join(f'{auc - best:+.4f}' for auc in ours.values())}")


def auc_of_ours(trainer: Trainer, data: Path) -> float:
    trainer.train()
    reader = SearchReader(trainer.config, data, "validation", data / TOKENIZER)
    if isinstance(trainer.readers["train"], IdsAlone):
        reader = cast(SearchReader, IdsAlone(reader))
    logits, clicks = [], []
    for batch, report in evaluate_batches(trainer.pipeline, trainer.model, reader, reader.num_batches(0)):
        real = batch.candidate_weight > 0
        logits.append(report.ranking["click"][real])
        clicks.append(batch["candidate_click"][real])
    return float(roc_auc_score(torch.cat(clicks), torch.cat(logits)))


def aucs_of_rechub(train: CandidateRows, validation: CandidateRows, rate: float, size: int, epochs: int) -> list[float]:
    """After each epoch."""
    trainer, aucs = rechub_trainer(train.config, DEFAULT, rate), []
    for _ in range(epochs):
        with quiet():
            trainer.train_one_epoch(train.batches(size))
            aucs.append(float(trainer.evaluate(trainer.model, validation.batches(LARGE))))
    return aucs


def rechub_turn(train: CandidateRows, units: list[int], rows: int, batches: Callable[[], Batches]) -> Callable[[], int]:
    trainer = rechub_trainer(train.config, units, RATES[0])

    def work() -> int:
        with quiet():
            trainer.train_one_epoch(batches())
        return rows

    return work


def rechub_trainer(config: RunConfig, units: list[int], rate: float) -> CTRTrainer:
    """Its model and trainer at their defaults but for the widths, which are ours."""
    torch.manual_seed(config.train.seed)
    tables = {name: config.tables[f.table] for name, f in config.features.items() if f.table not in config.bag_tables()}
    targets = {name: _target(name, tables) for name in tables if name.startswith("history_")}
    rest = {name: table for name, table in tables.items() if name not in targets}
    sparse = {name: SparseFeature(name, table.rows + 1, table.dim, padding_idx=0) for name, table in rest.items()}
    model = RechubDIN(
        features=[feature for name, feature in sparse.items() if name not in targets.values()],
        history_features=[
            SequenceFeature(name, tables[name].rows + 1, tables[name].dim, "concat", shared_with=target, padding_idx=0)
            for name, target in targets.items()
        ],
        target_features=[sparse[target] for target in targets.values()],
        mlp_params={"dims": config.model.tower, "dropout": config.model.dropout},
        attention_mlp_params={"dims": units},
    )
    return CTRTrainer(model, optimizer_params={"lr": rate, "weight_decay": WEIGHT_DECAY})


def _target(history: str, names: Iterable[str]) -> str:
    stem = history.removeprefix("history_")
    return f"candidate_{stem}" if f"candidate_{stem}" in names else stem


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch-rechub's progress bars."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


if __name__ == "__main__":
    main()
