"""Readers of files that never come, each in a process of its own: `python hung_reader.py FOLDER`, a prepared folder.

Prints for each case its name, its exit code and what it said.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.reader.test_reader import make_config, make_reader


def opens_the_split(folder: Path) -> None:
    _replace_by_a_pipe(folder / "train" / "part-00001.parquet")
    make_reader(folder, _config())


def reads_an_epoch(folder: Path, workers: int = 0) -> None:
    reader = make_reader(folder, _config(workers=workers))
    _replace_by_a_pipe(folder / "train" / "part-00001.parquet")
    list(reader.epoch(0))


def reads_an_epoch_in_a_reader_process(folder: Path) -> None:
    reads_an_epoch(folder, workers=1)


def _config(**batch: int):  # type: ignore[no-untyped-def]
    config = make_config(**batch)
    config.train.reader_timeout = 2.0
    return config


def _replace_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def main(folder: Path) -> None:
    for case in (opens_the_split, reads_an_epoch, reads_an_epoch_in_a_reader_process):
        copy = folder.with_name(case.__name__)
        subprocess.run(["cp", "-r", folder, copy], check=True)
        code, said = _in_a_fork(case, copy)
        print(f"{case.__name__}: exit code {code}: {' | '.join(said.splitlines())}", flush=True)


def _in_a_fork(case: Callable[[Path], None], folder: Path) -> tuple[int, str]:
    ends, starts = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(starts, 2)
        os.close(starts)
        case(folder)
        os._exit(0)
    os.close(starts)
    with os.fdopen(ends) as said:
        text = said.read()  # until the last process that can write is gone
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


if __name__ == "__main__":
    main(Path(sys.argv[1]))
