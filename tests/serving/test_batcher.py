"""Requests that wait together are scored together, by one ranker, in time or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from prectr_torchrec import Ranker
from prectr_torchrec.serving.batcher import Expired, MicroBatcher, Overloaded


def run(work: Callable[[MicroBatcher], Awaitable[Any]], **limits: Any) -> tuple[Any, list[int]]:
    """What `work` returns, and the sizes of the batches that were scored."""
    sizes: list[int] = []
    given = {"capacity": 8, "max_requests": 3, "max_candidates": 1000, "wait": 0.0, **limits}

    async def main() -> Any:
        return await work(MicroBatcher(on_batch=sizes.append, **given))

    return asyncio.run(main()), sizes


def rows(samples: pa.Table, count: int) -> list[pa.Table]:
    return [samples.slice(i, 1) for i in range(count)]


def test_what_waits_is_scored_together_up_to_the_limits(exported: Any, ranker: Ranker) -> None:
    async def work(batcher: MicroBatcher) -> Any:
        later = asyncio.get_running_loop().time() + 60
        asked = [asyncio.ensure_future(batcher.score(ranker, row, later)) for row in rows(exported.samples, 7)]
        await asyncio.sleep(0)  # all are waiting before anything is scored
        running = asyncio.ensure_future(batcher.run())
        found = await asyncio.gather(*asked)
        running.cancel()
        return found

    found, sizes = run(work)
    assert sizes == [3, 3, 1]
    for one, row in zip(found, rows(exported.samples, 7), strict=True):
        np.testing.assert_allclose(one.click_probability, ranker.score_samples(row)[0].click_probability, atol=1e-6)
    assert run(work, max_candidates=1)[1] == [1] * 7


def test_requests_of_two_rankers_are_not_mixed(exported: Any, ranker: Ranker) -> None:
    other = Ranker.load(exported.folder)

    async def work(batcher: MicroBatcher) -> None:
        later = asyncio.get_running_loop().time() + 60
        pairs = zip((ranker, ranker, other), rows(exported.samples, 3), strict=True)
        asked = [asyncio.ensure_future(batcher.score(which, row, later)) for which, row in pairs]
        await asyncio.sleep(0)
        running = asyncio.ensure_future(batcher.run())
        await asyncio.gather(*asked)
        running.cancel()

    assert sorted(run(work)[1]) == [1, 2]


def test_small_requests_are_scored_before_large_ones(exported: Any, ranker: Ranker) -> None:
    order: list[int] = []

    async def work(batcher: MicroBatcher) -> None:
        later = asyncio.get_running_loop().time() + 60

        async def ask(row: pa.Table) -> None:
            await batcher.score(ranker, row, later)
            order.append(row.nbytes)

        asked = [asyncio.ensure_future(ask(row)) for row in rows(exported.samples, 7)]
        await asyncio.sleep(0)
        running = asyncio.ensure_future(batcher.run())
        await asyncio.gather(*asked)
        running.cancel()

    run(work, max_requests=1)
    assert order == sorted(order) and order[0] < order[-1]


def test_what_is_too_late_is_refused_and_never_scored(exported: Any, ranker: Ranker) -> None:
    async def work(batcher: MicroBatcher) -> None:
        loop, (late, fine) = asyncio.get_running_loop(), rows(exported.samples, 2)
        with pytest.raises(Expired):
            await batcher.score(ranker, late, loop.time() + 0.01)
        running = asyncio.ensure_future(batcher.run())
        await batcher.score(ranker, fine, loop.time() + 60)
        running.cancel()

    assert run(work)[1] == [1]


def test_beyond_the_capacity_nobody_is_admitted_until_a_place_is_free() -> None:
    async def work(batcher: MicroBatcher) -> None:
        with batcher.admit():
            with pytest.raises(Overloaded), batcher.admit():
                pass
            assert batcher.admitted == 1
        with batcher.admit():
            pass

    run(work, capacity=1)
