"""The log of a server: lines with times, and no more of them than a person can read."""

from __future__ import annotations

import logging
import time

SECONDS = 10.0
"""In which a place of the program writes one line."""


def log_with_times() -> None:
    """Lets every logger write lines with times to stderr, the same place at most one each `SECONDS`."""
    handler = logging.StreamHandler()
    handler.addFilter(Sparing())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], force=True)  # libraries bring handlers of their own


class Sparing(logging.Filter):
    """Passes a line if its place in the program wrote none for `SECONDS`, and says how many it held back before."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        place, now = (record.pathname, record.lineno), time.monotonic()
        last, held = self._last.get(place, (-SECONDS, 0))
        if now - last < SECONDS:
            self._last[place] = last, held + 1
            return False
        self._last[place] = now, 0
        if held:
            record.msg, record.args = f"{record.getMessage()} (and {held:,} like it since the line before)", None
        return True
