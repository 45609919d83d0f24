"""The log of a server: lines with times, and no more of them than a person can read."""

from __future__ import annotations

import logging
import time
from collections import Counter

SECONDS, LINES = 10.0, 5
"""In which a place of the program writes a line once, and no more lines than these."""


def log_with_times() -> None:
    """Lets every logger write lines with times to stderr, as `RepeatFilter` lets them pass."""
    handler = logging.StreamHandler()
    handler.addFilter(RepeatFilter())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], force=True)  # libraries bring handlers of their own


class RepeatFilter(logging.Filter):
    """Passes a line that its place in the program has not written for `SECONDS`, up to `LINES` of them, and says how many it
    held back before."""

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[tuple[str, int], dict[str, float]] = {}
        self._held: Counter[tuple[str, int]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        place, line, now = (record.pathname, record.lineno), record.getMessage(), time.monotonic()
        lately = {text: when for text, when in self._written.get(place, {}).items() if now - when < SECONDS}
        passes = line not in lately and len(lately) < LINES
        self._written[place] = {**lately, line: now} if passes else lately
        if not passes:
            self._held[place] += 1
        elif held := self._held.pop(place, 0):
            record.msg, record.args = f"{line} (and {held:,} like it since the line before)", None
        return passes
