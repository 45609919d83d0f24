"""What a run directory holds, for all who read one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from prectr_torchrec.config.files import load_whole_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.system.plain_files import read_json

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
BASELINE = "baseline.json"


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
    """
    if not (run / CONFIG).is_file():
        raise FileNotFoundError(f"{run}: no run directory ({CONFIG} is missing); `prectr train` makes one")
    return load_whole_config(run / CONFIG)


def checkpoint_index(run: Path) -> dict[str, Any]:
    """`{"last": name, "best": name, "best_ne": float}`: no best before a validation, empty before the first checkpoint."""
    path = run / CHECKPOINTS / "index.json"
    return dict(read_json(path, _Index)) if path.exists() else {}


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
