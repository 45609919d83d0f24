"""The manifest of a checkpoint: size and checksum of every file, to know whether a disk gave back what was written.

`files.json` tells of the checkpoint's own files; one of them, `run.json`, of those files of the run that its scores depend on.

Without torch: whoever reads a checkpoint can check it. The checksum (CRC-32, which costs less than reading does) is against
accidents, not against an attacker: `checkpoint_reader` is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from typing_extensions import TypedDict

from prectr_torchrec.data.schema import MANIFEST as SAMPLES
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.runs.layout import CONFIG
from prectr_torchrec.system.plain_files import read_json

FILES = "files.json"
PROGRESS = "progress.json"
RUN = "run.json"
METADATA = ".metadata"
"""Distributed Checkpoint's, a pickle: `checkpoint_reader` reads it."""


class Described(TypedDict):
    bytes: int
    crc32: str
    """Eight hexadecimal digits."""


Manifest = dict[str, Described]
"""By file name."""


def describe_files(paths: Iterable[Path]) -> Manifest:
    """What the manifest says of these files, which are read as a stream."""
    return {path.name: _describe(path) for path in paths}


def describe_run(run: Path) -> Manifest:
    """The same of the files of a run that are there before its first checkpoint, by path within it."""
    files = [run / CONFIG, run / SAMPLES, *(run / TOKENIZER).glob("*")]
    return {path.relative_to(run).as_posix(): _describe(path) for path in files if path.is_file()}


def write_manifest(folder: Path, files: Manifest) -> None:
    (folder / FILES).write_text(json.dumps(dict(sorted(files.items())), indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Size and checksum of every file of a checkpoint.

    Raises:
        ValueError: there is no such checkpoint, or its manifest is missing or broken; names the file.
    """
    path = folder / FILES
    if not path.is_file():
        raise ValueError(f"{path}: missing: without it nobody knows whether the checkpoint is whole")
    manifest: Manifest = read_json(path, Manifest)
    for name in manifest:
        if Path(name).name != name:
            raise ValueError(f"{path}: {name!r} is no file of this folder")
    tensors = {file.name for file in folder.glob("*.distcp")}
    if unknown := sorted((tensors | {METADATA, PROGRESS, RUN}) - manifest.keys()):
        raise ValueError(f"{path}: says nothing of {', '.join(unknown)}; it is damaged, or of an earlier release")
    return manifest


def broken_files(folder: Path, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with the files of a checkpoint, each named; empty: they are as they were written.

    Args:
        part, parts: checks every `parts`-th file from number `part` on, so that several can share the reading.
    """
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        return [str(error)]
    of_run: Manifest = read_json(folder / RUN, Manifest) if part == 0 and not _problem(folder / RUN, manifest[RUN]) else {}
    written = [(folder / name, manifest[name]) for name in sorted(manifest)[part::parts]]
    written += [(folder.parents[1] / name, of_run[name]) for name in sorted(of_run)]
    return [problem for path, about in written if (problem := _problem(path, about))]


def _describe(path: Path) -> Described:
    return {"bytes": path.stat().st_size, "crc32": _crc32(path)}


def _problem(path: Path, written: Described) -> str | None:
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
