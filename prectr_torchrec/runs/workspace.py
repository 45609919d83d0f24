"""Output folders that a kill cannot spoil: what bears its name is whole, and what is there was made from the same settings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from prectr_torchrec.system.failures import writing
from prectr_torchrec.system.locks import LOCK
from prectr_torchrec.system.plain_files import flatten, read_json

SETTINGS = "settings.json"
_PARTIAL = ".partial"


class _Finished(TypedDict):
    settings: dict[str, Any]


def build_if_absent(path: Path, build: Callable[[Path], Any]) -> None:
    """Builds a file or folder aside, as of `replacing`, unless it is there already."""
    if not path.exists():
        with replacing(path) as temporary:
            build(temporary)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name for a file or folder to build; at the end it takes the place of what bore the name before.

    It lies in a new folder of a random name: nobody can have planted a link there. Its files get the mode of the umask.
    """
    with writing(path):
        yield from _replacing(path)


def replace_text(path: Path, text: str) -> None:
    """Writes a small file so that readers see the old or the new one, never half of it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(values: dict[str, Any], path: Path) -> None:
    """Writes a small JSON file as `replace_text` does, and its folder.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; none without the file.

    Half a line at the end is left out: a killed run may have left it, a running one may be writing it.

    Raises:
        ValueError: another line is no JSON object with a step; names file and line.
    """
    data = path.read_bytes() if path.exists() else b""
    records = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            record = json.loads(line or b"null")
        except ValueError:
            record = number
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        elif line:
            raise ValueError(f"{path}, line {number}: not what a run writes of a step; remove the line")
    return records


def _replacing(path: Path) -> Iterator[Path]:
    beside = f".{path.name[:150]}."
    of_killed = re.compile(re.escape(beside) + "[0-9a-f]{16}" + re.escape(_PARTIAL))
    for left in list(path.parent.iterdir()):
        if of_killed.fullmatch(left.name):
            remove(left)
    aside = path.with_name(f"{beside}{secrets.token_hex(8)}{_PARTIAL}")
    aside.mkdir()
    try:
        yield aside / path.name
        apply_umask(aside)
        os.replace(aside / path.name, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def apply_umask(folder: Path) -> None:
    """Gives the files of a folder the mode of a new file: some libraries make theirs private."""
    new = folder / f".{secrets.token_hex(8)}"
    new.touch(exist_ok=False)
    mode = stat.S_IMODE(new.stat().st_mode)
    new.unlink()
    for place, _, names in os.walk(folder):
        for file in (Path(place, name) for name in names):
            if not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
                file.chmod(mode)


def remove(path: Path) -> None:
    """Removes a file, a folder, or a link itself; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def open_output(
    out: Path, work: Path, manifest: Path, settings: dict[str, Any], *, parts: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Begins or resumes an output folder, or returns the manifest of what is already finished there.

    What was begun there with other settings is begun anew, with a note on the standard error, as long as nothing would be lost.

    Args:
        out: the output folder; may be missing, empty, unfinished or finished.
        work: its sub-folder for what is needed only until the end.
        manifest: its file that is written last and holds `settings`.
        settings: plain values that the result depends on.
        parts: names of the files and folders in `out` that may be made anew besides `work`, since they cost little; none: an
            unfinished job that made anything goes on with its own settings only.

    Raises:
        ValueError: the folder holds something else; names every setting that differs.
    """
    for place in (work, *(out / name for name in parts)):
        if place.is_symlink():
            raise ValueError(f"{place} is a link; remove it, or choose another folder")
    begun = work / SETTINGS
    if manifest.is_file():
        finished: dict[str, Any] = read_json(manifest, _Finished)
        _refuse_other(out, finished["settings"], settings)
        shutil.rmtree(work, ignore_errors=True)
        return finished
    if begun.is_file():
        try:
            _refuse_other(out, read_json(begun), settings)
        except ValueError as error:
            if not parts and any(path not in (work, begun, out / LOCK) for folder in (out, work) for path in folder.iterdir()):
                raise
            print(f"note: an unfinished job there is begun anew: {error}", file=sys.stderr)
            for place in (*(out / name for name in parts), work):
                remove(place)
    elif out.exists() and any(path not in (work, out / LOCK) for path in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds nothing that this command began; choose an empty folder")
    work.mkdir(parents=True, exist_ok=True)
    build_if_absent(begun, lambda path: path.write_text(json.dumps(settings), encoding="utf-8"))
    return None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            sha.update(block)
    return sha.hexdigest()


def folder_digest(path: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder, sub-folders left out, by name."""
    return {file.name: file_digest(file) for file in sorted(path.iterdir()) if file.is_file()}


def digest(settings: dict[str, Any]) -> str:
    """A name for the settings: equal settings, equal digest."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _refuse_other(out: Path, there: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = flatten(there), flatten(now)
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differing:
        lines = [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in differing]
        raise ValueError("\n  ".join([f"{out} was made from other settings; remove it or choose another folder:", *lines]))
