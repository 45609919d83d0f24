"""The manifest of a checkpoint: size and checksum of every file, to know whether a disk gave back what was written.

Without torch: whoever reads a checkpoint can check it. The checksum (CRC-32, which costs less than reading does) is against
accidents, not against an attacker.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILES = "files.json"
PROGRESS = "progress.json"

Manifest = dict[str, dict[str, Any]]
"""File name -> `bytes` and `crc32`, eight hexadecimal digits."""


def describe_files(paths: Iterable[Path]) -> Manifest:
    """What the manifest says of these files, which are read as a stream."""
    return {path.name: {"bytes": path.stat().st_size, "crc32": _crc32(path)} for path in paths}


def write_manifest(folder: Path, files: Manifest) -> None:
    (folder / FILES).write_text(json.dumps(dict(sorted(files.items())), indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest | None:
    """None: the checkpoint has no manifest, as those of earlier versions.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the manifest is broken.
    """
    if not (folder / PROGRESS).exists() and not (folder / FILES).exists():
        raise FileNotFoundError(f"{folder}: no checkpoint ({PROGRESS} is missing)")
    if not (folder / FILES).exists():
        return None
    try:
        return dict(json.loads((folder / FILES).read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{folder / FILES}: not valid JSON: {error}") from None


def broken_files(folder: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the files of a checkpoint, each named; empty: they are as they were written.

    Args:
        part, parts: checks every `parts`-th file from number `part` on, so that several can share the reading.
    """
    try:
        manifest = read_manifest(folder) or {}
    except (FileNotFoundError, ValueError) as error:
        return [str(error)]
    return [problem for name in sorted(manifest)[part::parts] if (problem := _problem(folder / name, manifest[name]))]


def _problem(path: Path, written: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path}: missing"
    if (size := path.stat().st_size) != written["bytes"]:
        return f"{path}: truncated or grown: {size:,} bytes in place of {written['bytes']:,}"
    return None if _crc32(path) == written["crc32"] else f"{path}: corrupt: its checksum is not that of what was written"


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"
