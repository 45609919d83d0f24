"""PRECTR-V2 for TorchRec: search ranking where relevance and click are one probability."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prectr_torchrec.system.doctor import VersionError, check_versions

if TYPE_CHECKING:
    from prectr_torchrec.serving.ranker import Ranker as Ranker

__all__ = ["Ranker", "VersionError", "check_versions"]

# The `prectr` command checks for itself, so that `prectr doctor` can speak where nothing else runs.
if Path(*sys.argv[:1]).name != "prectr":
    check_versions()


def __getattr__(name: str) -> Any:
    """`Ranker` brings torch along, so that it is imported only when it is asked for."""
    if name != "Ranker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prectr_torchrec.serving.ranker import Ranker

    return Ranker
