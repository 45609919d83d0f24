"""Paths as users give them. A URL is no path of this machine, and is refused before a folder of its name is made."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from prectr_torchrec.config_base import ConfigError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes one slash of two


def check_local(path: str | Path, name: str = "") -> None:
    """Refuses what is no path of this machine.

    Args:
        path: as given.
        name: of the argument or setting, for the message.

    Raises:
        ConfigError: it names a scheme, such as `s3://`.
    """
    text = str(path)
    found = _SCHEME.match(text)
    if found or "://" in text:
        scheme = found[0].rstrip("/") + "//" if found else "a URL"
        where = f"{name}: " if name else ""
        raise ConfigError(
            f"{where}{text!r} is no path of this machine ({scheme}); only such paths can be read and written: mount the "
            "bucket or copy the files. A folder that is called like this is given by its absolute path"
        )


def local_path(path: str | Path, name: str = "") -> Path:
    """The path, if it is one of this machine.

    Raises:
        ConfigError: as of `check_local`.
    """
    check_local(path, name)
    return Path(path)


def literal(path: Path) -> str:
    """A path for a library that expands patterns: absolute, and meaning this one file whatever its name."""
    return glob.escape(str(path.absolute()))
