"""Where the scalars of a run are shown besides `metrics.jsonl`: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from prectr_torchrec.config.trackers import TrackerKind
from prectr_torchrec.runs.mlflow_tracker import MLflow
from prectr_torchrec.runs.wandb_tracker import WeightsAndBiases
from prectr_torchrec.runs.workspace import replace_text
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.plain_files import read_json

TRACKERS = "trackers.json"
"""In a run directory: which run of a tracker it is, by kind."""


class Tracker(Protocol):
    """Shows scalars."""

    @property
    def run_id(self) -> str | None:
        """Of the tracker's own run; None where the run directory is all that it needs."""

    @property
    def resumed(self) -> bool:
        """Whether it has what an earlier start of this run wrote, after the last checkpoint too."""

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Args: scalars: by name, parts of a name with `/` between them."""

    def close(self, *, finished: bool) -> None:
        """Args: finished: whether the run came to its end; else another start may resume it."""


class TensorBoard:
    """Event files in the run directory.

    Args:
        run: run directory.
        step: the step resumed from; what was written after it is dropped.
    """

    run_id = None
    resumed = False

    def __init__(self, run: Path, step: int) -> None:
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)

    def close(self, *, finished: bool) -> None:
        self.board.close()


def open_trackers(kinds: Sequence[TrackerKind], run: Path, step: int, settings: dict[str, Any]) -> list[Tracker]:
    """Begins the runs of all trackers, or resumes those that an earlier start began.

    Args:
        kinds: as configured.
        run: run directory; its name is the run's.
        step: the step resumed from.
        settings: the configuration, shown beside the scalars.

    Raises:
        ConfigError: a tracker cannot be used; says which and why.
    """
    path, known = run / TRACKERS, dict[str, str]()
    if path.exists():
        known = read_json(path, dict[str, str])
    trackers: list[Tracker] = []
    for kind in kinds:
        try:
            trackers.append(_open(kind, run, step, settings, known.get(kind)))
        except Exception as error:  # of the client's own kinds, and of what it uses
            for opened in trackers:
                opened.close(finished=False)
            hint = f"; to begin another run there, remove {path}" if kind in known else ""
            raise ConfigError(f"trackers: {kind}: {explain(error)}{hint}") from error
    known |= {kind: tracker.run_id for kind, tracker in zip(kinds, trackers, strict=True) if tracker.run_id is not None}
    if known:
        replace_text(path, json.dumps(known))
    return trackers


def explain(error: Exception) -> str:
    """What a client says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _open(kind: TrackerKind, run: Path, step: int, settings: dict[str, Any], run_id: str | None) -> Tracker:
    if kind == "mlflow":
        return MLflow(run, settings, run_id)
    if kind == "wandb":
        return WeightsAndBiases(run, settings, run_id)
    return TensorBoard(run, step)
