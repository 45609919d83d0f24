"""Requests that arrive together are scored together, in one thread; there is room for so many, and no more wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from prectr_torchrec.serving.ranker import Ranker
from prectr_torchrec.serving.scores import Scores

_LOG = logging.getLogger(__name__)
_BATCH_BYTES = 2**20
"""Of a batch of several requests."""


class Overloaded(Exception):
    """There is no room for another request."""


class Expired(Exception):
    """A request was not scored before its deadline."""


@dataclass
class _Waiting:
    ranker: Ranker
    samples: pa.Table
    """One row."""
    explain: bool
    deadline: float
    """Of the event loop's clock."""
    scores: asyncio.Future[Scores]


class MicroBatcher:
    """Scores requests in batches.

    Args:
        capacity: requests admitted at a time, those in the works included.
        max_requests, max_candidates: of a batch; one request may have more candidates.
        wait: seconds that a request which finds nobody waiting lets others join it.
        on_batch: told the number of requests of each batch.
    """

    def __init__(
        self, *, capacity: int, max_requests: int, max_candidates: int, wait: float, on_batch: Callable[[int], None]
    ) -> None:
        self._capacity, self._max_requests, self._max_candidates = capacity, max_requests, max_candidates
        self._wait, self._on_batch = wait, on_batch
        self._waiting: deque[_Waiting] = deque()
        self._some = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "scoring")
        self.admitted = 0

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Takes one of the places for a request.

        Raises:
            Overloaded: all are taken.
        """
        if self.admitted >= self._capacity:
            raise Overloaded
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1

    async def score(self, ranker: Ranker, samples: pa.Table, deadline: float, *, explain: bool = False) -> Scores:
        """Scores the one row of `samples`, with others that wait for the same ranker.

        Raises:
            Expired: the deadline passed first.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(ranker, samples, explain, deadline, loop.create_future())
        self._waiting.append(waiting)
        self._some.set()
        try:
            return await asyncio.wait_for(waiting.scores, deadline - loop.time())
        except TimeoutError:
            raise Expired from None

    async def run(self) -> None:
        """Scores what comes, until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._some.wait()
                if len(self._waiting) == 1 and self._wait:
                    await asyncio.sleep(self._wait)
                batch = self._take(loop.time())
                if not self._waiting:
                    self._some.clear()
                if batch:
                    self._on_batch(len(batch))
                    results = await loop.run_in_executor(self._thread, _score, batch)
                    for waiting, result in zip(batch, results, strict=True):
                        if waiting.scores.done():
                            continue
                        if isinstance(result, Exception):
                            waiting.scores.set_exception(result)
                        else:
                            waiting.scores.set_result(result)
        finally:
            self._thread.shutdown(wait=False)

    def _take(self, now: float) -> list[_Waiting]:
        """The next batch: of one ranker, without those whose time is over or who went away, and the small ones first, so that a
        large one keeps no others waiting."""
        there = [waiting for waiting in self._waiting if not waiting.scores.done() and waiting.deadline > now]
        self._waiting.clear()
        batch: list[_Waiting] = []
        candidates = nbytes = 0
        for waiting in sorted(there, key=lambda waiting: waiting.samples.nbytes):
            candidates += waiting.samples["num_candidates"][0].as_py()
            nbytes += waiting.samples.nbytes
            full = len(batch) == self._max_requests or candidates > self._max_candidates or nbytes > _BATCH_BYTES
            if batch and (full or waiting.ranker is not batch[0].ranker):
                self._waiting.append(waiting)
            else:
                batch.append(waiting)
        return batch


def _score(batch: Sequence[_Waiting]) -> list[Scores | Exception]:
    """The scores of a batch; should it fail, each alone, so that one request cannot fail another."""
    samples, explain = pa.concat_tables([w.samples for w in batch]), [w.explain for w in batch]
    try:
        return list(batch[0].ranker.score_samples(samples, explain))
    except Exception as error:
        _LOG.exception("scoring a batch of %d failed", len(batch))
        return [error] if len(batch) == 1 else [_score([waiting])[0] for waiting in batch]
