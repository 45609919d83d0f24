"""Sizes of memory as people write them: GB is 10^9 bytes, GiB 2^30, as DuckDB and the makers of memory and disks have it."""

from __future__ import annotations

import re

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str, setting: str) -> int:
    """The bytes of a size such as `80GB` (10^9) or `1.5 GiB` (2^30).

    Args:
        text: the size, with its unit.
        setting: what it was given as, for the error.

    Raises:
        ValueError: it is no size.

    Example::

        assert parse_bytes("80GB", "--hbm") == 80 * 10**9
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if found is None or found[2].upper() not in _UNITS:
        raise ValueError(f"{setting}: {text!r} is no size; write it as 80GB (10^9 bytes), 500MB or 2GiB (2^30)")
    return round(float(found[1]) * _UNITS[found[2].upper()])


def format_bytes(count: float) -> str:
    """Three digits and a decimal unit: `1.32 TB`."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
