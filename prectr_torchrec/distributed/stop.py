"""A scheduler's wish that the job ends soon, and the exit code that asks to be started again."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

REQUEUE = os.EX_TEMPFAIL
"""75: the job was stopped before its end and goes on when it is started again."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(SystemExit):
    """The job stopped because it was asked to, and saved what it had."""

    def __init__(self) -> None:
        super().__init__(REQUEUE)


class StopSignal:
    """Notes, while entered, the first of `SIGNALS` that this process gets, in place of dying of it.

    What follows from it is for the ranks to agree on, since a signal may reach one of them only. A second SIGINT interrupts, as
    ever. Outside the main thread, where Python allows no handlers, it notes nothing.

    Attributes:
        received: name of the signal, None so far.
    """

    received: str | None = None

    def __enter__(self) -> StopSignal:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
