"""How a command ends that could not do its work: one line that says why, and a code that says whether to try again."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from prectr_torchrec.system.doctor import VersionError

MISTAKE = 2
"""Exit code: another start would fail as well, until somebody has mended something."""
_SYSTEM = {
    os.strerror(number): number
    for number in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EMFILE,
        errno.ENFILE,
        errno.EFBIG,
        errno.EIO,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ELOOP,
        errno.ENOTEMPTY,
        errno.ESTALE,
    )
}
_TORCH_WRITER = re.compile(r"PytorchStreamWriter failed|inline_container\.cc")
"""What torch.save says of a full disk: not what it was."""


class WorkerError(RuntimeError):
    """A rank failed; the message is the rank's own."""


class OutputError(RuntimeError):
    """What was to be written could not be."""


def exit_code(error: BaseException) -> int | None:
    """Of a command or rank that ends with this error: `MISTAKE`, 1 for what another start may get over, None for a fault of ours,
    which is to be seen with its traceback."""
    if isinstance(error, ConnectionError | TimeoutError | WorkerError):
        return 1
    if isinstance(error, ValueError | OSError | VersionError | OutputError) or _system_error(error):
        return MISTAKE
    return None


def describe(error: BaseException) -> str:
    """The error in one line, files first."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file in what libraries say of a full or failing disk.

    Raises:
        OSError: with the file's name.
    """
    try:
        yield
    except ValueError:  # has its own words
        raise
    except Exception as error:
        number, named = _system_error(error), getattr(error, "filename", None)
        if number is None or (named is not None and not str(named).startswith(str(path.parent / f".{path.name[:150]}."))):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def run_command(command: Callable[[], None]) -> None:
    """Runs a command line's function; ends the process with one line and its code where that fails."""
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # of a pager or `head` that has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if (code := exit_code(error)) is None:
            raise
        with contextlib.suppress(OSError):  # nobody listens any more
            print(f"error: {describe(error)}", file=sys.stderr, flush=True)
        sys.exit(code)


def _system_error(error: BaseException) -> int | None:
    """The number of the system's error that a library tells of in its own words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    found = next((number for name, number in _SYSTEM.items() if name in text), None)
    return errno.EIO if found is None and _TORCH_WRITER.search(text) else found
