"""What the files of an exported ranker are: sizes and digests, written with them and compared when they are opened."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from prectr_torchrec.runs.workspace import digest, file_digest

LARGE = 2**28
"""Bytes. Larger files are compared by their size alone, unless all is asked for: reading them would take longer than serving
wants to wait."""
SEAL = "sha256"


class Described(TypedDict):
    bytes: int
    sha256: str


Files = dict[str, Described]
"""By path within the folder, `/` between its parts."""


def describe(folder: Path, paths: Iterable[Path]) -> Files:
    """Size and digest of files of a folder."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in sorted(paths)
    }


def check(folder: Path, files: Files, *, all_digests: bool = False) -> None:
    """Compares the files of a folder with what was written of them.

    Raises:
        ValueError: one is missing or another; names it.
    """
    for name, written in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}: missing; copy the folder anew, or export again")
        if (size := path.stat().st_size) != written["bytes"]:
            raise ValueError(f"{path}: {size:,} bytes in place of {written['bytes']:,}; copy the folder anew, or export again")
        if (all_digests or size < LARGE) and file_digest(path) != written["sha256"]:
            raise ValueError(f"{path}: not what was written: its digest is another; copy the folder anew, or export again")
    for part in {Path(name).parts[0] for name in files if "/" in name}:
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and path.relative_to(folder).as_posix() not in files:
                raise ValueError(f"{path}: no file of this export; remove it")


def sealed(about: dict[str, Any]) -> dict[str, Any]:
    """Plain values with a digest of their own."""
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return {**plain, SEAL: digest(plain)}


def is_sealed(about: dict[str, Any]) -> bool:
    """Whether these values are as `sealed` left them."""
    return about == sealed({name: value for name, value in about.items() if name != SEAL})
