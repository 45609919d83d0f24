"""PRECTR-V2 for TorchRec: search ranking where relevance and click are one probability."""

import sys
from pathlib import Path

from prectr_torchrec.doctor import VersionError, check_versions

__all__ = ["VersionError", "check_versions"]

# The `prectr` command checks for itself, so that `prectr doctor` can speak where nothing else runs.
if Path(*sys.argv[:1]).name != "prectr":
    check_versions()
