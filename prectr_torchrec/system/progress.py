"""How far a command is: a bar on a terminal, a plain line now and then where the output goes to a file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from tqdm import tqdm

from prectr_torchrec.system.job_environment import QUIET

Item = TypeVar("Item")
SECONDS = 2.0
"""What is done sooner shows no progress."""
INTERVAL = 30.0
"""Seconds between two plain lines."""
_LINE = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_fmt}, {remaining} left"
_LINE_WITHOUT_TOTAL = "{desc}: {n_fmt}{unit}, {rate_fmt}"


def quiet() -> bool:
    """Whether progress is not wanted: `prectr --quiet`, and all ranks that it starts."""
    return bool(os.environ.get(QUIET))


class Now:
    """Whether it is time for another plain line: the first at once, the next after `INTERVAL` seconds.

    Example::

        now = Now()
        assert now.due() and not now.due()
    """

    def __init__(self) -> None:
        self.last: float | None = None

    def due(self) -> bool:
        """True once an interval."""
        now = time.monotonic()
        if self.last is not None and now - self.last < INTERVAL:
            return False
        self.last = now
        return True


class Progress(tqdm):
    """`tqdm` on the standard error: with rate and time left, from `SECONDS` on.

    Args:
        what: is done, such as `scoring`.
        total: of it; None where that is not known.
        unit: what is counted, such as `rows`.
        shown: False where another process shows it.

    Example::

        with Progress("scoring", total=10, unit="rows") as progress:
            progress.update(10)
    """

    disable: bool = True
    plain: bool = False
    """Both of one that a signal interrupts before it is made: it has nothing to close."""

    def __init__(self, what: str, *, total: int | None = None, unit: str = "steps", shown: bool = True) -> None:
        self.plain = not sys.stderr.isatty()
        options: dict[str, Any] = {"mininterval": INTERVAL, "maxinterval": INTERVAL} if self.plain else {"dynamic_ncols": True}
        if self.plain:
            options["bar_format"] = _LINE if total is not None else _LINE_WITHOUT_TOTAL
        super().__init__(
            desc=what,
            total=total,
            unit=f" {unit}",
            unit_scale=total is None or total >= 1000,
            delay=INTERVAL if self.plain else SECONDS,
            leave=False,
            disable=quiet() or not shown,
            file=sys.stderr,
            **options,
        )

    @staticmethod
    def format_meter(*args: Any, **kwargs: Any) -> str:
        """Called by tqdm, which of something slow says `6 s/ epochs`."""
        return str(tqdm.format_meter(*args, **kwargs)).replace("s/ ", "s/")

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """What is being done now; shown when progress is next, and not at once."""
        self.desc = desc or ""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Called by tqdm: a line, where a bar would not be one."""
        if not self.plain:
            return bool(super().display(msg, pos))
        if msg != "":  # tqdm's way to take a bar away
            print(self if msg is None else msg, file=sys.stderr, flush=True)
        return True

    def close(self) -> None:
        """Called by tqdm: a bar is taken away, lines stay as they are."""
        if self.plain and not self.disable:
            self._decr_instances(self)
            self.disable = True
        super().close()


def counted(items: Iterable[Item], what: str, unit: str, *, total: int | None = None) -> Iterator[Item]:
    """The items, with progress as they are worked on.

    Args:
        items: of any kind.
        what: is done with them.
        unit: what they are called.
        total: how many; by default their length.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    with Progress(what, total=total, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()
