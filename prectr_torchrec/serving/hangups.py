"""SIGHUP before there is anything to load anew. Imports nothing heavy: torch takes seconds, and the signal would end them."""

from __future__ import annotations

import signal
from types import FrameType


class Hangups:
    """Remembers whether SIGHUP came, from its making on."""

    def __init__(self) -> None:
        self.came = False
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.came = True
