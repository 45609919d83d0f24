"""What a launcher tells the ranks of one machine, by environment variables."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

LAUNCHER = "PRECTR_LAUNCHER"
"""Process that started the ranks: they end with it."""
STORE = "PRECTR_STORE"
"""Path of the file in which the ranks meet."""
LOCKED = "PRECTR_LOCKED"
"""Output folder that the launcher holds locked for them."""
QUIET = "PRECTR_QUIET"
"""Set where nobody wants to see how far a command is."""


@contextlib.contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """Sets variables of the environment, and restores them at the end."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
