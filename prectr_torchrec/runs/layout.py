"""What a run directory holds, for all who read one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from prectr_torchrec.config.files import load_whole_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.runs.workspace import replace_text
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.system.plain_files import read_json

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
_INDEX = "index.json"
BASELINE = "baseline.json"
CHECKPOINT_VERSION = 2
"""Of the names and shapes of what is saved."""


class _Version(TypedDict):
    version: NotRequired[int]


class _Index(TypedDict):
    last: str
    best: NotRequired[str]
    best_ne: NotRequired[float]


@only_local
def load_run(run: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        FileNotFoundError: it is no run directory.
        ConfigError: the configuration is not whole.
        ValueError: as of `checkpoint_index`.
    """
    if not (run / CONFIG).is_file():
        raise FileNotFoundError(f"{run}: no run directory ({CONFIG} is missing); `prectr train` makes one")
    checkpoint_index(run)  # a run of another release has another configuration too, of which less would be understood
    return load_whole_config(run / CONFIG)


def checkpoint_index(run: Path) -> dict[str, Any]:
    """`{"last": name, "best": name, "best_ne": float}`: no best before a validation, empty before the first checkpoint.

    Raises:
        ValueError: it is broken, or its checkpoints are of another release.
    """
    path = run / CHECKPOINTS / _INDEX
    if not path.exists():
        return {}
    version = read_json(path, _Version).get("version", 1)
    if version != CHECKPOINT_VERSION:
        raise ValueError(
            f"{path}: these checkpoints are of version {version} and this release reads version {CHECKPOINT_VERSION}, in which "
            "parameters have other names; train again, with another --run"
        )
    return {name: value for name, value in read_json(path, _Index).items() if name != "version"}


def write_checkpoint_index(run: Path, index: dict[str, Any]) -> None:
    """Replaces the index, as of `checkpoint_index`, at once."""
    replace_text(run / CHECKPOINTS / _INDEX, json.dumps({"version": CHECKPOINT_VERSION, **index}, indent=1))


def checkpoint_names(run: Path) -> list[str]:
    """The checkpoints that are kept, oldest first."""
    return sorted(path.name for path in (run / CHECKPOINTS).glob("step-*"))


def is_unfinished(run: Path) -> bool:
    """Whether a training run ended before its first checkpoint: there is nothing in it that another start would lose."""
    return not checkpoint_index(run) and not checkpoint_names(run) and not (run / BASELINE).exists()


def checkpoint_path(run: Path, which: str) -> Path:
    """The folder of a checkpoint.

    Args:
        which: `last`, `best` (without any validation the last one is the best), or the name of one that is kept.

    Raises:
        FileNotFoundError: there is none, or none of this name.
    """
    index, folder = checkpoint_index(run), run / CHECKPOINTS
    if "last" not in index:
        raise FileNotFoundError(f"{folder}: no {which!r} checkpoint; has `prectr train` run with this --run directory?")
    name = str(index.get(which, index["last"])) if which in ("last", "best") else which
    if name not in (kept := checkpoint_names(run)):
        raise FileNotFoundError(f"{folder}: no checkpoint {name!r}; there are last, best, {', '.join(kept)}")
    return folder / name
