"""Errors of what a user wrote, and hints at what would be right."""

from __future__ import annotations

import difflib
import typing


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and what would be right."""


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the valid names, or nothing."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (valid: {', '.join(sorted(valid))})" if valid else ""
