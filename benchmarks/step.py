"""Training from the reader beside training on resident batches, and where a step's time goes.

One process, one rank: the sharded model, optimizers and pipeline of `prectr train`, in turns on

- the reader: each step reads its batch, as training does;
- one resident batch, over and over: of the reader's first batches the one with the median number of candidates;
- the reader's first batches, kept in memory: the same rows as the reader's, free of reading.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/step.py [--data PREPARED] [--config prectr_v1] [--steps 40] [--rounds 5]

Without `--data` it measures on a simulated log. The shares come from timers around the pipeline's stages and the modules'
forwards, some thirty clock readings a step; a part's time is its own, without the parts inside it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain, count, cycle, islice
from pathlib import Path
from typing import Any

import torch
from common import describe, median, ratio, simulated_samples, take_turns
from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import Awaitable

from prectr_torchrec.config import RunConfig, load_config
from prectr_torchrec.data.batch import SearchBatch
from prectr_torchrec.data.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.training.trainer import build_sharded

FED, RESIDENT, KEPT = "fed by the reader", "one resident batch", "the same batches, resident"
WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a prepared folder with a train split")
    parser.add_argument("--config", default="prectr_v1")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a setting")
    parser.add_argument("--steps", type=int, default=40, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=12_000, help="of the simulated log")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config, arguments.set)
    with tempfile.TemporaryDirectory() as scratch, process_group("cpu") as process:
        data = arguments.data or simulated_samples(config, Path(scratch), arguments.requests)
        print(describe("torch", "fbgemm-gpu-cpu", "torchrec", "pyarrow"))
        step = Step(config, data, Path(scratch), process)
        compare(step, arguments.steps, arguments.rounds)
        print_shares(step, arguments.steps)


class Step:
    """The step of `prectr train`, on batches from anywhere."""

    def __init__(self, config: RunConfig, data: Path, run: Path, process: Process) -> None:
        shutil.copytree(data / TOKENIZER, run / TOKENIZER)
        self.config, self.stage = config, next(stage for stage in config.train.stages if stage.split == "train")
        self.model, self.optimizers = build_sharded(config, run, process)
        self.pipeline = TrainPipelineSparseDist(self.model, self.optimizers.combined, process.device)
        self.model.train()
        self.reader = SearchReader(config, data, "train", run / TOKENIZER, shuffle=True)

    def train(self, source: Iterator[SearchBatch], steps: int) -> None:
        for step in range(steps):
            self.optimizers.set_rates(self.stage, step, steps)
            self.pipeline.progress(source)

    def read(self) -> Iterator[SearchBatch]:
        """Epoch after epoch."""
        return chain.from_iterable(self.reader.epoch(epoch) for epoch in count())


def compare(step: Step, steps: int, rounds: int) -> None:
    kept = list(islice(step.read(), steps))
    fills = [int(batch.candidate_weight.sum()) for batch in kept]
    typical = kept[fills.index(statistics.median_low(fills))]
    print(
        f"configuration {step.config.name}: {step.config.batch.requests} requests and {statistics.median_low(fills)} of "
        f"{step.config.batch.candidates} candidate rows in the resident batch, {min(fills)} to {max(fills)} in the reader's"
    )
    step.train(cycle(kept), WARM_UP)

    def on(source: Iterator[SearchBatch]) -> Callable[[], int]:
        """The pipeline reads two batches ahead, so that the two of the turn before are trained on and two are left over."""
        counts: list[int] = []

        def work() -> int:
            counts.clear()
            step.train(_counted(source, counts), steps)
            return sum(counts)

        return work

    rates = take_turns({FED: on(step.read()), RESIDENT: on(cycle([typical])), KEPT: on(cycle(kept))}, rounds)
    print(f"{rounds} rounds of {steps} steps in turns; medians, ratios within a round")
    print(f"{'':28}{'candidates/s':>14}{'fed / this':>12}{'by CPU time':>14}{'fed / this':>12}")
    for name, each in rates.items():
        rate, share = median(each), ratio(rates[FED], each)
        print(f"{name:28}{rate.wall:14,.0f}{share.wall:12.2f}{rate.cpu:14,.0f}{share.cpu:12.2f}")


def print_shares(step: Step, steps: int) -> None:
    clock = Clock()
    watch(step, clock)
    source = step.read()
    with clock.part("pipeline and the rest"):
        step.train(_timed(source, clock), steps)
    whole = sum(clock.seconds.values())
    print(f"{whole / steps * 1000:.1f} ms a step fed by the reader, of which")
    for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"  {part:42}{seconds / whole:7.1%}{seconds / steps * 1000:9.2f} ms")


class Clock:
    """Seconds by part; a part inside another is taken out of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def part(self, name: str) -> Clock:
        self._next = name
        return self

    def __enter__(self) -> None:
        self._switch()
        self._open.append(self._next)

    def __exit__(self, *_: object) -> None:
        self._switch()
        self._open.pop()

    def wrap(self, owner: Any, method: str, name: str, then: Callable[[Any], Any] = lambda result: result) -> None:
        """Counts a bound method's time as `name`, that of `then` on its result included."""
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return then(inner(*args, **kwargs))

        setattr(owner, method, timed)

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def watch(step: Step, clock: Clock) -> None:
    """Puts the timers in place, after a first step: the pipeline has rewritten the model by then."""
    task = step.model.module
    prectr, pipeline = task.objective.prectr, step.pipeline
    clock.wrap(pipeline, "start_sparse_data_dist", "input dist")
    clock.wrap(pipeline, "wait_sparse_data_dist", "input dist")
    clock.wrap(pipeline, "_model_fwd", "towers and the rest of the forward")
    clock.wrap(task.embeddings, "forward", "lookup and output dist", then=_wait)
    if prectr.relevance.encoder is not None:
        clock.wrap(prectr.relevance.encoder, "forward", "text encoder")
    if prectr.relevance.match is not None:
        clock.wrap(prectr.relevance.match, "forward", "match features")
    if prectr.interest is not None:
        clock.wrap(prectr.interest, "forward", "attention")
    clock.wrap(pipeline, "_backward", "backward, table updates included")
    clock.wrap(pipeline, "_optimizer_step", "optimizer and clipping")
    clock.wrap(step.optimizers, "set_rates", "optimizer and clipping")


def _wait(looked_up: tuple[Any, dict[str, Tensor]]) -> tuple[Any, dict[str, Tensor]]:
    """The sequences' output dist ends where they are first used; it belongs to the lookup."""
    sequences, bags = looked_up
    return sequences.wait() if isinstance(sequences, Awaitable) else sequences, bags


def _timed(source: Iterator[SearchBatch], clock: Clock) -> Iterator[SearchBatch]:
    while True:
        with clock.part("reader"):
            batch = next(source)
        yield batch


def _counted(source: Iterator[SearchBatch], counts: list[int]) -> Iterator[SearchBatch]:
    for batch in source:
        counts.append(int(batch.candidate_weight.sum()))
        yield batch


if __name__ == "__main__":
    main()
