"""What a run says while it goes: metrics.jsonl, trackers and one line on the screen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prectr_torchrec.config.trackers import TrackerKind
from prectr_torchrec.runs.trackers import Tracker, explain, open_trackers
from prectr_torchrec.runs.workspace import read_records, replace_text
from prectr_torchrec.system.progress import Now, quiet


class Throughput:
    """Averages loss terms and counts rows between two reports.

    Args:
        steps_left: of the job.
    """

    sums: Tensor
    rows: Tensor
    steps: int

    def __init__(self, steps_left: int) -> None:
        self.steps_left = steps_left
        self.names: list[str] = []
        self._start()

    def add(self, terms: dict[str, Tensor], rows: Tensor) -> None:
        """Args: terms: scalars by name, to be averaged. rows: (2,) requests and candidates of the batch."""
        scalars = torch.stack([value.double() for value in terms.values()])
        self.names = list(terms)
        self.sums = self.sums + scalars if self.steps else scalars
        self.rows += rows.double().cpu()
        self.steps += 1
        self.steps_left -= 1

    def skip(self) -> None:
        """A step that is not to be counted."""
        self.steps_left -= 1

    def flush(self, device: torch.device) -> dict[str, float]:
        """Means over steps and ranks, rows per second over all ranks, seconds left; collective."""
        packed = torch.cat([self.sums.to(device) / self.steps / dist.get_world_size(), self.rows.to(device)])
        dist.all_reduce(packed)
        seconds = time.perf_counter() - self.since
        values = packed.tolist()
        line = dict(zip(self.names, values, strict=False))
        line["requests_per_second"], line["samples_per_second"] = (round(v / seconds, 1) for v in values[-2:])
        line["seconds_left"] = round(self.steps_left * seconds / self.steps)
        self._start()
        return line

    def _start(self) -> None:
        self.sums = torch.zeros(1, dtype=torch.double)
        self.rows = torch.zeros(2, dtype=torch.double)
        self.steps = 0
        self.since = time.perf_counter()


class MetricsLog:
    """`metrics.jsonl`, trackers and the progress line of rank 0.

    Args:
        run: run directory.
        step: the step resumed from; later lines of an interrupted run are dropped, they will be written again.
        trackers: that show the numbers too; one that fails is left out from there on.
    """

    def __init__(self, run: Path, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self.path, self.trackers = run / "metrics.jsonl", list(trackers)
        records = read_records(self.path)
        self.seen = {_topic(record) for record in records}
        replace_text(self.path, "".join(f"{json.dumps(record)}\n" for record in records if record["step"] <= step))
        self.file = self.path.open("a", encoding="utf-8")
        self.on_terminal, self.plain_line = sys.stderr.isatty(), Now()

    def write(self, values: dict[str, Any]) -> None:
        """Args: values: `step` and numbers; a nested dict's numbers are named by its key."""
        scalars = {name: value for name, value in _flat(values) if isinstance(value, float | int) and name != "step"}
        for tracker in self.trackers.copy():  # before the file: a kill in between shows a line twice, and loses none
            if not (tracker.resumed and _topic(values) in self.seen):
                self._attempt(tracker, partial(tracker.write, scalars, values["step"]))
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        self._show(values)

    def close(self, *, finished: bool = True) -> None:
        """Args: finished: whether the run came to its end."""
        if self.on_terminal:
            print(file=sys.stderr)
        self.file.close()
        for tracker in self.trackers.copy():
            self._attempt(tracker, partial(tracker.close, finished=finished))

    def _attempt(self, tracker: Tracker, work: Callable[[], None]) -> None:
        """A run of days does not end because nobody shows it."""
        try:
            work()
        except Exception as error:  # of the client's own kinds
            self.trackers.remove(tracker)
            name = type(tracker).__name__
            print(f"{self._start()}note: {name} is left out from here on: {explain(error)}", file=sys.stderr, flush=True)

    def _show(self, values: dict[str, Any]) -> None:
        if "tables" in values or quiet():  # tables: many, and slow to change
            return
        if "validation" in values:
            text = "  ".join(f"{n} {'-' if v is None else format(v, '.4f')}" for n, v in values["validation"].items())
            print(f"{self._start()}step {values['step']}  validation  {text}", file=sys.stderr)
            return
        if not self.on_terminal and not self.plain_line.due():
            return
        labels = [n for n in values if n.startswith("bce_")]
        terms = "  ".join(f"{n} {values[n]:.4f}" for n in ("loss", "bce", *labels, "anchor", "consistency") if n in values)
        left = f"{values['seconds_left'] // 60}:{values['seconds_left'] % 60:02d}"
        line = (
            f"step {values['step']}  {values['stage']} epoch {values['epoch']}  {terms}  "
            f"{values['samples_per_second']:,.0f} samples/s  {left} left"
        )
        print(f"{self._start()}{line}", end="" if self.on_terminal else "\n", file=sys.stderr, flush=True)

    def _start(self) -> str:
        return "\r\033[K" if self.on_terminal else ""


def open_log(run: Path, trackers: Sequence[TrackerKind], settings: dict[str, Any], step: int) -> MetricsLog:
    """The log of a run, as of `MetricsLog`, with its trackers, as of `open_trackers`.

    Raises:
        ConfigError: a tracker cannot be used.
    """
    return MetricsLog(run, step, open_trackers(trackers, run, step, settings))


def _topic(values: dict[str, Any]) -> tuple[int, bool, bool]:
    """What tells a run's lines apart."""
    return values["step"], "validation" in values, "tables" in values


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in values.items():
        flat += _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return flat
