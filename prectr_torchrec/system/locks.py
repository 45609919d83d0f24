"""One writer at a time: a lock on what a command writes, released by the kernel whatever becomes of its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import inspect
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from prectr_torchrec.system.failures import writing
from prectr_torchrec.system.job_environment import LOCKED

P = ParamSpec("P")
R = TypeVar("R")
LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[int] = set()


class LockedError(ValueError):
    """Another process writes to the same place."""


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds an output folder, made if absent; its `.lock` says who does.

    Raises:
        LockedError: another process holds it; names host, process and since when.
    """
    if (there := folder.exists()) and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(folder / LOCK, folder):
            yield
    finally:
        if not there:  # and stayed empty: the command was refused
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """As `folder_lock`, of one output file, or of a folder that appears whole: by `.NAME.lock` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_name(f".{path.name}.lock"), path):
        yield


def check_free(path: Path) -> None:
    """Refuses what another process writes to before anything heavy is imported; who writes locks it all the same.

    Raises:
        LockedError: as of `folder_lock` and `file_lock`.
    """
    for file in (path / LOCK, path.with_name(f".{path.name}.lock")):
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # there is none, or the writer will say what is wrong with it
            continue
        try:
            _take(descriptor, path, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)


def check_job_free(folder: Path) -> None:
    """As `check_free`, by what starts the ranks of a job: one of them, started by another launcher, finds its own job's lock.

    Raises:
        LockedError: as of `check_free`.
    """
    if "RANK" not in os.environ:
        check_free(folder)


def writes_folder(argument: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that holds `folder_lock` of one of its arguments while it runs."""
    return _holding(argument, folder_lock)


def writes_file(argument: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """As `writes_folder`, by `file_lock`."""
    return _holding(argument, file_lock)


def _holding(argument: str, lock: Callable[[Path], AbstractContextManager[None]]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            with lock(Path(signature.bind(*args, **kwargs).arguments[argument])):
                return function(*args, **kwargs)

        return locked

    return decorate


def job_lock(folder: Path, rank: int = 0) -> AbstractContextManager[None]:
    """`folder_lock` of a job of several ranks, held by its launcher or else by rank 0."""
    return folder_lock(folder) if rank == 0 and os.environ.get(LOCKED) != str(folder.absolute()) else writing(folder)


@contextlib.contextmanager
def _lock(file: Path, what: Path) -> Iterator[None]:
    descriptor = _open_locked(file, what)
    _held.add(descriptor)
    holder = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}"
    try:
        with contextlib.suppress(OSError):  # a full disk: held all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
        with writing(what):
            yield
    finally:
        _held.discard(descriptor)
        with contextlib.suppress(OSError):
            file.unlink()  # while it is locked: who waits for no lock sees none, or a new file
        os.close(descriptor)


def _open_locked(file: Path, what: Path) -> int:
    while True:
        try:
            # no link is followed, and a pipe of this name does not block
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
                raise ValueError(f"{file} is no plain file; remove it: it is not this program's lock") from None
            raise
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise ValueError(f"{file} is no plain file of one name; remove it: it is not this program's lock")
            _take(descriptor, what)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(file, follow_symlinks=False), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has just removed it: once more


def _take(descriptor: int, what: Path, kind: int = fcntl.LOCK_EX) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 500, 0).decode(errors="replace") or "another process"
        raise LockedError(f"{what} is being written by {holder}; wait for its end, or choose another place") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"note: the file system of {what} knows no locks: see to it that no second job writes there", file=sys.stderr)


def _forget() -> None:
    """In a forked worker: a lock goes with the last process that has its file open, and should go with the command."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
