"""A ranker that was loaded before a fork scores in the children."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

import numpy as np
import pytest
import torch

from prectr_torchrec import Ranker

REQUEST = {"query": "red lamp", "candidates": [{"item_id": i, "title": f"Red oak lamp {i}"} for i in range(400)]}


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_a_ranker_of_several_threads_scores_after_a_fork_as_before(exported: Any) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    stop = threading.Event()
    try:
        ranker = Ranker.load(exported.folder)
        wanted = ranker.score(REQUEST).click_probability

        def busy() -> None:  # holds the ranker's locks most of the time
            while not stop.is_set():
                ranker.score(REQUEST)

        running = threading.Thread(target=busy)
        running.start()

        def child(_: int) -> tuple[int, Any]:
            return torch.get_num_threads(), ranker.score(REQUEST).click_probability

        global _child
        _child = child
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for count, found in pool.map_async(_call, range(2)).get(120):
                assert count == 1
                np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert torch.get_num_threads() == 2
    finally:
        stop.set()
        running.join()
        torch.set_num_threads(threads)


_child: Any = None


def _call(number: int) -> Any:
    return _child(number)
