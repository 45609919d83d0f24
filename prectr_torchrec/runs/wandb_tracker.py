"""Weights & Biases as a tracker; its client reads `WANDB_PROJECT`, `WANDB_MODE` and credentials from the environment."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

PROJECT = "prectr"
SECONDS = 30
"""That it may take to begin."""


class WeightsAndBiases:
    """A run of a project; its files lie in `wandb/` of the run directory.

    Args:
        run: run directory, whose name it gets.
        settings: the run's configuration.
        run_id: of the run to resume; None: a new one.
    """

    run_id: str

    def __init__(self, run: Path, settings: dict[str, Any], run_id: str | None) -> None:
        import wandb

        self.resumed = run_id is not None
        self.run_id = run_id or secrets.token_hex(8)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.run_id,
            name=run.resolve().name,
            dir=str(run),
            config=settings,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off", init_timeout=SECONDS),
        )
        self.run.define_metric("*", step_metric="step")  # its own step only rises, and a resumed run begins before its end

    def write(self, scalars: dict[str, float], step: int) -> None:
        self.run.log({"step": step, **scalars})

    def close(self, *, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)
