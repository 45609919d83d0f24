"""Memory that was used once goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa


def _find() -> Callable[[int], Any] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


_trim = _find()


def freeze_objects() -> None:
    """Collects what is no longer used, and leaves all else out of later collections: of the objects of torch and a model there
    are so many that each collection would keep clients waiting."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def release_memory() -> None:
    """Returns what is free within the process to the system: Arrow keeps it, and so does glibc."""
    gc.collect()  # errors and their frames hold on to each other, and to the bodies that they are of
    pa.default_memory_pool().release_unused()
    if _trim is not None:
        _trim(0)
