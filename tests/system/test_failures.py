"""What a command says, and how it ends, where the system lets it not do its work: real files, real limits."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prectr_torchrec.data.simulate.simulate import simulate
from prectr_torchrec.runs.workspace import replacing
from prectr_torchrec.system.failures import MISTAKE, describe, exit_code, writing

PRECTR = [sys.executable, "-m", "prectr_torchrec.cli"]


def test_a_file_without_room_is_named(tmp_path: Path) -> None:
    """Files of this process may not grow beyond 4 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, before[1]))
    try:
        for write in (lambda path: path.write_bytes(b"0" * 2**16), lambda path: torch.save(torch.zeros(2**14), path)):
            with pytest.raises(OSError, match=r"out\.bin") as raised, replacing(tmp_path / "out.bin") as path:
                write(path)
            assert exit_code(raised.value) == MISTAKE
            assert describe(raised.value).startswith(f"{tmp_path / 'out.bin'}: ")
        with pytest.raises(OSError, match="File too large") as raised:
            simulate(tmp_path / "log", requests=40, users=5, queries=4, items=60)
        assert describe(raised.value).startswith(str(tmp_path / "log"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (lambda folder: folder / "file" / "out", "Not a directory"),
        (lambda folder: folder / "file", "Not a directory"),
        (lambda folder: folder / ("a" * 300), "File name too long"),
    ],
    ids=["under a file", "a file", "a long name"],
)
def test_a_folder_that_cannot_be_made_is_one_line(out: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=said) as raised:
        simulate(out(tmp_path), requests=40, users=5, queries=4, items=60)
    assert describe(raised.value) == f"{raised.value.filename}: {said}" and exit_code(raised.value) == MISTAKE


def test_a_full_standard_output_is_one_line_and_code_2() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([*PRECTR, "config", "--config", "demo"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: [Errno 28] No space left on device\n"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with subprocess.Popen(
        [*PRECTR, "config", "--config", "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None and job.stderr is not None
        job.stdout.close()
        assert job.stderr.read() == ""


def test_an_interrupt_is_quiet(tmp_path: Path) -> None:
    code = "import os, signal; from prectr_torchrec.system.failures import run_command\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell ignores it for what runs in the background
    code += "run_command(lambda: os.kill(os.getpid(), signal.SIGINT))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EIO])
def test_what_a_library_says_in_its_own_words_is_known(number: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as raised, writing(tmp_path / "table"):
        raise RuntimeError(f"Error while serializing: IoError(Os {{ code: {number}, message: {os.strerror(number)!r} }})")
    assert raised.value.errno == number and raised.value.filename == str(tmp_path / "table")


def test_what_another_start_may_get_over_has_code_1() -> None:
    assert exit_code(ConnectionResetError(errno.ECONNRESET, "reset")) == 1
    assert exit_code(AssertionError("ours")) is None
