"""Training from the reader beside training on resident batches, and where a step's time goes.

One process, one rank: the sharded model, optimizers and pipeline of `prectr train`, in turns on

- the reader: each step reads its batch, as training does;
- one resident batch, over and over: of the reader's first batches the one with the median number of candidates;
- the reader's first batches, kept in memory: rows as varied as the reader's, free of reading.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/step.py [--data PREPARED] [--config prectr_v1] [--steps 64] [--rounds 3]

With `--against KEY=VALUE` it compares steps of the configuration with steps of the same with that setting, in turns. With
`--against FOLDER`, another checkout, it runs the `benchmarks/step.py` of each in processes of their own, in turns.
Without `--data` it measures on a simulated log. The shares come from timers around the pipeline's stages and the modules'
forwards, some thirty readings of the clock a step; a part's time is its own, without the parts inside it.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from common import Rate, describe, endless, median, ratio, simulated_samples, take_turns, train_on
from torch import Tensor
from torchrec.distributed.types import Awaitable

from prectr_torchrec.config.files import load_config
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.modules import InterestTower
from prectr_torchrec.training.trainer import Trainer

FED, RESIDENT, KEPT = "fed by the reader", "one resident batch", "the first batches, resident"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a prepared folder with a train split")
    parser.add_argument("--config", default="prectr_v1")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting; may be repeated")
    parser.add_argument("--against", metavar="KEY=VALUE", help="or a checkout: compare with it")
    parser.add_argument("--steps", type=int, default=64, help="of a round; the reader loads anew about every 64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=12_000, help="of the simulated log")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.against and "=" not in arguments.against:
        compare_checkouts(Path(arguments.against).resolve(), arguments)
        return
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config, arguments.set)
    with tempfile.TemporaryDirectory() as scratch, process_group("cpu") as process:
        data = arguments.data or simulated_samples(config, Path(scratch), arguments.requests)
        print(describe("torch", "fbgemm-gpu-cpu", "torchrec", "pyarrow"))
        trainer = Trainer(config, data, Path(scratch) / "run", process)
        trainer.model.train()
        if arguments.against:
            other = load_config(arguments.config, [*arguments.set, arguments.against])
            changed = Trainer(other, data, Path(scratch) / "other", process)
            compare_settings({"as configured": trainer, arguments.against: changed}, arguments.steps, arguments.rounds)
            return
        compare(trainer, arguments.steps, arguments.rounds)
        print_shares(trainer, arguments.steps)


def compare(trainer: Trainer, steps: int, rounds: int) -> None:
    kept = list(islice(endless(trainer), steps))
    fills = [int(batch.candidate_weight.sum()) for batch in kept]
    typical = statistics.median_low(fills)
    shape = trainer.config.batch
    print(
        f"configuration {trainer.config.name}, {shape.requests} requests and {shape.candidates} candidate rows a batch: "
        f"{typical} filled in the resident batch, {min(fills)} to {max(fills)} in the first {steps}"
    )
    sources = {FED: endless(trainer), RESIDENT: cycle([kept[fills.index(typical)]]), KEPT: cycle(kept)}
    rates = take_turns({name: train_on(trainer, source, steps) for name, source in sources.items()}, rounds)
    print(f"{rounds} rounds of {steps} steps each in turns; medians, the ratios of rates in the same round")
    print(f"{'':28}{'candidates/s':>14}{'fed / this':>12}{'by CPU time':>14}{'fed / this':>12}")
    for name, each in rates.items():
        rate, share = median(each), ratio(rates[FED], each)
        print(f"{name:28}{rate.wall:14,.0f}{share.wall:12.2f}{rate.cpu:14,.0f}{share.cpu:12.2f}")


def compare_settings(trainers: dict[str, Trainer], steps: int, rounds: int) -> None:
    work = {}
    for name, trainer in trainers.items():
        trainer.model.train()
        wall, cpu, source = time.perf_counter(), time.process_time(), endless(trainer)
        train_on(trainer, source, 3)()
        print(f"{name}: first 3 steps in {time.perf_counter() - wall:.1f} s, {time.process_time() - cpu:.1f} s of its own CPU")
        work[name] = train_on(trainer, source, steps)
    rates = take_turns(work, rounds)
    first = next(iter(rates.values()))
    for name, each in rates.items():
        print(f"{name:28}{median(each).cpu:14,.0f} candidates/s by CPU time, {ratio(each, first).cpu:.2f} of the first")


def compare_checkouts(other: Path, arguments: argparse.Namespace) -> None:
    """Steps fed by the reader, of this checkout and another, by the benchmark of each; samples are made by each too."""
    options = [f"--{name}={getattr(arguments, name)}" for name in ("config", "steps", "requests", "threads")]
    options += [f"--set={setting}" for setting in arguments.set] + ([f"--data={arguments.data}"] if arguments.data else [])
    checkouts = {"this checkout": Path(__file__).resolve().parents[1], str(other): other}
    rates: dict[str, list[Rate]] = {name: [] for name in checkouts}
    print(describe("torch", "fbgemm-gpu-cpu", "torchrec", "pyarrow"))
    with tempfile.TemporaryDirectory() as scratch:
        for number, checkout in enumerate(checkouts.values()):
            link_package(checkout, Path(scratch) / str(number))
        for _ in range(arguments.rounds):
            for number, (name, checkout) in enumerate(checkouts.items()):
                rates[name].append(rate_of(checkout, Path(scratch) / str(number), options))
    print(f"configuration {arguments.config}, {arguments.rounds} rounds of {arguments.steps} steps each in turns; medians")
    for name, each in rates.items():
        times = ratio(rates["this checkout"], each).cpu
        print(f"{name}: {median(each).cpu:,.0f} candidates/s by CPU time, {times:.2f} of the CPU time of this checkout")


def link_package(checkout: Path, folder: Path) -> None:
    """The package as it is installed: modules/ as prectr_torchrec.modules, ..."""
    (package := folder / "prectr_torchrec").mkdir(parents=True)
    for path in [*(checkout / "prectr_torchrec").iterdir(), *(checkout / name for name in ("modules", "launchers", "configs"))]:
        (package / path.name).symlink_to(path)


def rate_of(checkout: Path, packages: Path, options: list[str]) -> Rate:
    command = [sys.executable, str(checkout / "benchmarks" / "step.py"), *options, "--rounds=1"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(packages)}, capture_output=True, text=True, check=False)
    found = re.search(rf"^{FED}\s+([\d,]+)\s+[\d.]+\s+([\d,]+)", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        raise SystemExit(f"{shlex.join(command)} said no rate:\n{done.stderr[-2000:]}")
    return Rate(*(float(rate.replace(",", "")) for rate in found.groups()))


def print_shares(trainer: Trainer, steps: int) -> None:
    clock = Clock()
    work = train_on(trainer, _timed(endless(trainer), clock), steps)
    watch(trainer, clock)
    work()  # the reader of a new epoch starts
    clock.seconds.clear()
    with clock.part("pipeline and the rest"):
        work()
    whole = sum(clock.seconds.values())
    print(f"{whole / steps * 1000:.1f} ms a step fed by the reader, of which")
    for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"  {part:36}{seconds / whole:7.1%}{seconds / steps * 1000:9.2f} ms")


class Clock:
    """Seconds by part; what a part spends in parts inside it counts as theirs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._count()
        self._open.append(name)
        yield
        self._count()
        self._open.pop()

    def wrap(self, owner: Any, method: str, name: str, then: Callable[[Any], Any] = lambda result: result) -> None:
        """Counts an object's method as `name`, with what `then` does to its result."""
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return then(inner(*args, **kwargs))

        setattr(owner, method, timed)

    def _count(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def watch(trainer: Trainer, clock: Clock) -> None:
    """Puts the timers in place, after the first step: the pipeline has rewritten the model by then."""
    task, pipeline = trainer.model.module, trainer.pipeline
    text = task.model.text_side()
    attention = next((module for module in task.model.modules() if isinstance(module, InterestTower)), None)
    clock.wrap(pipeline, "start_sparse_data_dist", "input dist")
    clock.wrap(pipeline, "wait_sparse_data_dist", "input dist")
    clock.wrap(task.embeddings, "forward", "lookup and output dist", then=_wait)
    for name, module in {
        "text encoder": getattr(getattr(text, "interaction", None), "encoder", None),
        "match features": getattr(text, "match", None),
        "attention": attention,
    }.items():
        if module is not None:
            clock.wrap(module, "forward", name)
    clock.wrap(pipeline, "_model_fwd", "towers and the rest of the forward")
    clock.wrap(pipeline, "_backward", "backward, table updates included")
    clock.wrap(pipeline, "_optimizer_step", "optimizer and clipping")
    clock.wrap(trainer.optimizers, "set_rates", "optimizer and clipping")


def _wait(looked_up: tuple[Any, dict[str, Tensor]]) -> tuple[Any, dict[str, Tensor]]:
    """The sequences' output dist ends where they are first used; it belongs to the lookup."""
    sequences, bags = looked_up
    return sequences.wait() if isinstance(sequences, Awaitable) else sequences, bags


def _timed(source: Iterator[SearchBatch], clock: Clock) -> Iterator[SearchBatch]:
    while True:
        with clock.part("reader"):
            batch = next(source)
        yield batch


if __name__ == "__main__":
    main()
