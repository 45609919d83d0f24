"""What the benchmarks share: generated data, a training loop, turns, and the lines that say where a figure was taken."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.simulate.simulate import simulate
from prectr_torchrec.training.trainer import Trainer


class Rate(NamedTuple):
    """Candidates a second: by the clock on the wall, and by the processor's, which other programs disturb less."""

    wall: float
    cpu: float


def describe(*packages: str) -> str:
    """Machine, date and versions."""
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    machine = f"{platform.platform()}, {platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    load = f"load {os.getloadavg()[0]:.1f} at the start, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}"
    return f"{machine}, {load}\n{datetime.date.today()}, python {platform.python_version()}, {versions}"


def take_turns(contenders: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[Rate]]:
    """Rates of each round; the contenders take turns, so that a slow moment of the machine meets all of them.

    Args:
        contenders: each does its work and returns the candidates that it did.
        rounds: measured ones; one more comes before them to warm up.
    """
    rates: dict[str, list[Rate]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            done = work()
            if turn:
                rates[name].append(Rate(done / (time.perf_counter() - wall), done / (time.process_time() - cpu)))
    return rates


def median(rates: list[Rate]) -> Rate:
    return Rate(*(statistics.median(clock) for clock in zip(*rates, strict=True)))


def ratio(rates: list[Rate], others: list[Rate]) -> Rate:
    """Median over the rounds of a contender's rate to another's in the same round."""
    return median([Rate(a.wall / b.wall, a.cpu / b.cpu) for a, b in zip(rates, others, strict=True)])


def settings_of_samples(name: str) -> list[str]:
    """What another configuration has to be told of samples that were prepared by this one."""
    config = load_config(name)
    lengths = {key: getattr(config.data, key) for key in ("history_length", "peer_length")}
    text = {key: getattr(config.text, key) for key in ("vocab_size", "query_tokens", "title_tokens")}
    return [f"{section}.{key}={v}" for section, keys in (("data", lengths), ("text", text)) for key, v in keys.items()]


def simulated_samples(config: RunConfig, folder: Path, requests: int, shown: int | None = None) -> Path:
    """Simulates a log and prepares it.

    Args:
        shown: keeps the requests that show as many candidates; None: all, up to 6 each.
    """
    simulate(folder / "log", requests=requests, users=requests // 15, queries=requests // 30, items=requests // 5)
    if shown is not None:
        path = folder / "log" / "raw" / config.data.raw.impressions.path
        impressions = pq.read_table(path)
        counts = impressions.group_by("request_id").aggregate([("item_id", "count")])
        kept = counts.filter(pc.equal(counts["item_id_count"], shown))["request_id"]
        pq.write_table(impressions.filter(pc.is_in(impressions["request_id"], value_set=kept.combine_chunks())), path)
    prepare(config.data, config.text, folder / "log" / "raw", folder / "samples", progress=False)
    return folder / "samples"


def endless(trainer: Trainer) -> Iterator[SearchBatch]:
    """What the trainer's reader reads, epoch after epoch."""
    return chain.from_iterable(trainer.readers["train"].epoch(epoch) for epoch in count())


def train_on(trainer: Trainer, source: Iterator[SearchBatch], steps: int) -> Callable[[], int]:
    """Training as `Trainer` does it, on batches from anywhere: each call takes `steps` and returns the candidates read.

    The pipeline is two batches ahead of the model: a call trains on the two left over from the call before, and leaves two.
    """
    stage = next(stage for stage in trainer.config.train.stages if stage.split == "train")
    counts: list[int] = []

    def counted() -> Iterator[SearchBatch]:
        for batch in source:
            counts.append(int(batch.candidate_weight.sum()))
            yield batch

    counting = counted()

    def work() -> int:
        counts.clear()
        for step in range(steps):
            trainer.optimizers.set_rates(stage, step, steps)
            trainer.pipeline.progress(counting)
        return sum(counts)

    return work


def logistic(design: NDArray[np.float64], probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of a logistic regression on probabilities, by Newton's method."""
    weights = np.zeros(design.shape[1])
    for _ in range(12):
        fitted = 1 / (1 + np.exp(-design @ weights))
        curvature = (design * (fitted * (1 - fitted))[:, None]).T @ design + 1e-6 * np.eye(len(weights))
        weights += np.linalg.solve(curvature, design.T @ (probability - fitted))
    return weights


def spread(values: list[float]) -> str:
    """Mean, and half of the range of several."""
    if not values:
        return ""
    half = f" ± {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{half}"
