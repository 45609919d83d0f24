"""Which trackers show a run, and whether their clients are installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from prectr_torchrec.system.errors import ConfigError

TrackerKind = Literal["tensorboard", "mlflow", "wandb"]


def check_trackers(kinds: Sequence[TrackerKind]) -> None:
    """Raises ConfigError where the client of a tracker is not installed; imports none of them."""
    for kind in kinds:
        found = find_spec(kind)
        if found is None or found.origin is None:  # None: a folder of this name, such as W&B's own beside a run
            raise ConfigError(f"trackers: {kind} is not installed; pip install 'prectr-torchrec[{kind}]'")
