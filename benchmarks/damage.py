"""Files damaged at random, and what must come of it: an answer that does not differ, or one complaint that names the file.

A try is a kind of material, a seed and a number; `fuzz.py --damaged KIND --first NUMBER --tries 1` repeats it alone.

A try hangs when it takes 60 s of CPU time, of all its threads: a busy machine slows it down and changes nothing. Whatever waits
without working is stopped after 15 minutes by the clock; native code, which no signal interrupts, ends the whole run a minute
later with the stacks of its threads. Processes that a try starts have the limit by the clock alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

CPU_SECONDS = 60
"""Of a try; the slowest of those that end take three."""
CLOCK_SECONDS = 900
EVERY = 100
"""Tries from one line of progress to the next."""
WORDS = (
    b"null",
    b"-1",
    b"1e999",
    b".nan",
    b"[]",
    b"{}",
    b"true",
    b'""',
    b"\xff\xfe",
    b"\x00",
    b"99999999999999999999",
    b"!!python/name:os.system",
    b"../../x",
    b"&a [*a]",
    b"2026-13-45",
    b"'",
)


class Material(NamedTuple):
    """Files to damage and what reads them."""

    make: Callable[[Path], Any]
    """Writes them to a folder."""
    damaged: tuple[str, ...]
    """Patterns of the files that are damaged."""
    readers: dict[str, Callable[[Path], Any]]
    """What is damaged reaches the product through one of them."""
    compared: tuple[str, ...] = ()
    """Readers whose answer must not change: it is checked that the files are those that were written."""


def run(name: str, material: Material, *, seed: int, first: int, tries: int) -> list[str]:
    """Damages one file after the other; returns what went wrong, a paragraph each."""
    failures: list[str] = []
    outcomes: Counter[str] = Counter()
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        with _quiet():
            material.make(whole)
        expected = {}
        for reader, read in material.readers.items():
            with _copy(whole) as folder, _quiet():
                answer = read(folder)
            if reader in material.compared:
                expected[reader] = answer
        gc.freeze()  # what leaving a process group collects is what the try made, not all of torch
        start = time.process_time()
        for number in range(first, first + tries):
            if number > first and (number - first) % EVERY == 0:
                print(_told(name, number - first, first, seed, outcomes, start), flush=True)
            rng = random.Random(f"{name} {seed} {number}")
            reader = rng.choice(list(material.readers))
            with _copy(whole) as folder:
                path = rng.choice(sorted(path for pattern in material.damaged for path in folder.glob(pattern)))
                how = damage(path, rng)
                what, problem = _outcome(material.readers[reader], folder, path, expected.get(reader))
            outcomes[what] += 1
            if problem:
                failures.append(f"{name} {number} (seed {seed}): {reader} of {path.relative_to(folder)}, {how}: {problem}")
                print(failures[-1], flush=True)
    print(_told(name, tries, first, seed, outcomes, start), flush=True)
    return failures


def _told(name: str, tries: int, first: int, seed: int, outcomes: Counter[str], start: float) -> str:
    told = ", ".join(f"{what} {count:,}" for what, count in sorted(outcomes.items()))
    return f"{name}: {tries:,} tries from number {first} (seed {seed}): {told}; {time.process_time() - start:.0f} s of CPU time"


def damage(path: Path, rng: random.Random) -> str:
    """Changes a file; says how."""
    data = path.read_bytes()
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 64, 4096))
    ways: dict[str, Callable[[], bytes]] = {
        "cut off": lambda: data[:at],
        "bits flipped": lambda: _flipped(data, rng),
        "overwritten": lambda: data[:at] + rng.randbytes(length) + data[at + length :],
        "zeroed": lambda: data[:at] + bytes(length) + data[at + length :],
        "bytes inserted": lambda: data[:at] + rng.randbytes(length) + data[at:],
        "bytes taken out": lambda: data[:at] + data[at + length :],
        "a word put in": lambda: data[:at] + rng.choice(WORDS) + data[at + rng.choice((0, 1, 5)) :],
        "a value exchanged": lambda: _exchanged(data, rng),
        "a line taken out or doubled": lambda: _lines(data, rng),
        "emptied": lambda: b"",
    }
    how = rng.choice([*ways, "removed", "another file"])
    if how == "removed":
        path.unlink()
    elif how == "another file":
        shutil.copyfile(rng.choice(sorted(p for p in path.parent.iterdir() if p.is_file())), Path(f"{path}.new"))
        Path(f"{path}.new").replace(path)
    else:
        path.write_bytes(ways[how]())
    return f"{how} at {at} ({length})"


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _exchanged(data: bytes, rng: random.Random) -> bytes:
    """Another value behind a colon, as of YAML and JSON."""
    places = [place for place, byte in enumerate(data) if byte == ord(":")]
    if not places:
        return _flipped(data, rng)
    start = rng.choice(places) + 1
    ends = [end for end in (data.find(mark, start) for mark in (b"\n", b",", b"}")) if end >= 0]
    return data[:start] + b" " + rng.choice(WORDS) + data[min(ends, default=len(data)) :]


def _lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        line = rng.randrange(len(lines))
        lines[line : line + 1] = lines[line : line + 1] * rng.choice((0, 2))
    return b"".join(lines)


def _outcome(read: Callable[[Path], Any], folder: Path, path: Path, expected: Any) -> tuple[str, str | None]:
    """What came of it, and what is wrong with that."""
    try:
        with _limited(), _quiet():
            found = read(folder)
    except _TooLong as limit:
        return "hung", f"no end within {limit}"
    except (ValueError, OSError) as error:  # what the command line makes a line and exit code 2 of
        message = str(error)
        named = str(path) in message or path.name in message or str(path.parent) in message
        return "refused", None if named else f"a complaint that does not name it: {type(error).__name__}: {message[:500]}"
    except BaseException:
        return "broke", traceback.format_exc()[-2500:]
    if expected is not None and found != expected:
        return "answered otherwise", "another answer, in silence"
    return "answered", None


class _TooLong(BaseException):
    """Nobody may catch it on the way."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Ends what takes too long, see the top of the file."""
    signal.signal(signal.SIGPROF, _too_long)
    signal.signal(signal.SIGALRM, _too_long)
    faulthandler.dump_traceback_later(CLOCK_SECONDS + 60, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_REAL, CLOCK_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def _too_long(number: int, frame: Any) -> None:
    raise _TooLong(f"{CPU_SECONDS} s of CPU time" if number == signal.SIGPROF else f"{CLOCK_SECONDS} s by the clock")


@contextlib.contextmanager
def _copy(whole: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(shutil.copytree(whole, Path(scratch) / "copy", symlinks=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
