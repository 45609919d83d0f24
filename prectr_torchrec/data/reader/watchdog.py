"""A read that hangs is said so, and ends the process: nobody waits for it in silence."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

Item = TypeVar("Item")


class ReaderTimeout(RuntimeError):
    """Reading took longer than `train.reader_timeout`."""


@contextlib.contextmanager
def watched(seconds: float, what: Callable[[], str]) -> Iterator[None]:
    """Watches from a thread beside it how long something takes.

    After a tenth of the time a note says what is waited for. After all of it the process ends with exit code 1, and tells its
    launcher why: a hung read sits in the file system, where no exception reaches it.

    Args:
        seconds: the time it may take.
        what: called when there is something to say.
    """
    done = threading.Event()

    def watch() -> None:
        if done.wait(seconds / 10):
            return
        print(f"note: waiting for {seconds / 10:g} s for {what()}", file=sys.stderr, flush=True)
        if not done.wait(seconds * 0.9):
            _end(ReaderTimeout(f"{what()}: nothing came for {seconds:g} s (train.reader_timeout); is its storage there?"))

    threading.Thread(target=watch, name="reader watchdog", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def watched_items(items: Iterable[Item], seconds: float, what: Callable[[], str]) -> Iterator[Item]:
    """The items, each one `watched`."""
    iterator = iter(items)
    while True:
        with watched(seconds, what):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def _end(error: ReaderTimeout) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
    get_error_handler().record_exception(error)  # for torchrun
    for reader_process in multiprocessing.active_children():
        reader_process.kill()
    os._exit(1)
