"""Checkpoints in a run directory: written aside, published whole, the last and the best kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torchrec.distributed.model_parallel import DistributedModelParallel

from prectr_torchrec.distributed.process import random_states, set_random_states
from prectr_torchrec.distributed.resharding import check_loadable, saving_ranks
from prectr_torchrec.runs import CHECKPOINTS, checkpoint_index, checkpoint_path
from prectr_torchrec.training.files import replace_text
from prectr_torchrec.training.optimizers import Optimizers
from prectr_torchrec.training.row_blocks import RowBlockPlanner

_PROGRESS = "progress.json"


class Checkpoints:
    """The folder `checkpoints/` of a run.

    Each checkpoint is a folder of Distributed Checkpoint files (model, both optimizers, random states) with
    `progress.json` (schedule and data position). It is renamed to its final name when it is complete, so that a killed save
    is never taken for one. `index.json` names the last and the best.
    """

    def __init__(self, run: Path) -> None:
        self._run, self.folder = run, run / CHECKPOINTS

    def index(self) -> dict[str, Any]:
        """As `runs.checkpoint_index`."""
        return checkpoint_index(self._run)

    def path(self, which: str) -> Path:
        """As `runs.checkpoint_path`."""
        return checkpoint_path(self._run, which)

    def progress(self) -> dict[str, Any]:
        """What was saved as progress with the last checkpoint, empty before the first one."""
        return dict(json.loads((self.path("last") / _PROGRESS).read_text())) if self.index() else {}

    def save(
        self,
        model: DistributedModelParallel,
        optimizers: Optimizers,
        progress: dict[str, Any],
        validation_ne: float | None = None,
    ) -> None:
        """Saves on all ranks; collective.

        Args:
            progress: plain values; `progress["step"]` names the checkpoint.
            validation_ne: where it was measured after this step: the lowest one is the best checkpoint.
        """
        name = f"step-{progress['step']:09d}"
        temporary = self.folder / f".{name}.saving"
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        dist.barrier()
        dcp.save(_state(model, optimizers), checkpoint_id=temporary, planner=RowBlockPlanner())
        if dist.get_rank() == 0:
            (temporary / _PROGRESS).write_text(json.dumps(progress, indent=1))
            final = self.folder / name
            if final.exists():
                shutil.rmtree(final)
            os.replace(temporary, final)
            index = self.index()
            index["last"] = name
            if validation_ne is not None and validation_ne < index.get("best_ne", float("inf")):
                index |= {"best": name, "best_ne": validation_ne}
            replace_text(self.folder / "index.json", json.dumps(index, indent=1))
            for old in self.folder.glob("step-*"):
                if old.name not in (index["last"], index.get("best")):
                    shutil.rmtree(old)
        dist.barrier()

    def load(self, which: str, model: DistributedModelParallel, optimizers: Optimizers | None) -> None:
        """Loads into a sharded model, on as many ranks as saved it or others; collective.

        Random states go on where they were on as many ranks only.

        Args:
            optimizers: None: only the weights.

        Raises:
            ConfigError: it cannot be moved to this sharding; nothing was read.
        """
        path = self.path(which)
        saved = dcp.FileSystemReader(path).read_metadata()
        check_loadable(saved, _state(model, optimizers), path)
        if optimizers is not None:
            optimizers.init_state()
        state = _state(model, optimizers)
        if optimizers is not None and saving_ranks(saved) != dist.get_world_size():
            del state["random"]
        dcp.load(state, checkpoint_id=path)
        model.load_state_dict(state["model"])
        if optimizers is not None:
            optimizers.combined.load_state_dict(state["optimizer"])
        if "random" in state:
            set_random_states(state["random"][str(dist.get_rank())])


def _state(model: DistributedModelParallel, optimizers: Optimizers | None) -> dict[str, Any]:
    state: dict[str, Any] = {"model": model.state_dict()}
    if optimizers is not None:
        random = {str(dist.get_rank()): random_states(model.device)}
        state |= {"optimizer": optimizers.combined.state_dict(), "random": random}
    return state
