"""Whether what was loaded is a model: its numbers, and the scores of a request that asks all of it, are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor

from prectr_torchrec.serving.exported_tables import INT8_EXTRA, WEIGHT

if TYPE_CHECKING:
    from prectr_torchrec.serving.ranker import Ranker

_SAMPLE = {
    "user_id": [1],
    "query_id": [1],
    "query": ["a trial"],
    "history_item_id": [[2, 3]],
    "peer_item_id": [[3, 4]],
    "candidate_item_id": [list(range(8))],
    "candidate_title": [[f"title {i}" for i in range(8)]],
}
_ROWS, _LARGE = 2**16, 2**28
"""Rows looked at of tables with more bytes than that."""


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuses a file of weights in which some are no numbers.

    Raises:
        ValueError: names the file and the weight.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity; the export is broken, export again")


def check_table(path: Path, weight: Tensor) -> None:
    """Refuses a table with rows that are no numbers; of a large one, rows all over it are looked at."""
    step = 1 if weight.nbytes < _LARGE else max(len(weight) // _ROWS, 1)
    rows = weight[::step]
    packed = rows.dtype == torch.uint8
    check_finite(path, {WEIGHT: rows[:, -INT8_EXTRA:].contiguous().view(torch.float32) if packed else rows})


def check_scores(ranker: Ranker, folder: Path) -> None:
    """Scores a request that nobody sent; what is made at the first call keeps no client waiting then.

    Raises:
        ValueError: some score is no finite number.
    """
    (scores,) = ranker.score_samples(ranker.schema.from_arrow(pa.table(_SAMPLE)))
    if not scores.finite():
        raise ValueError(f"{folder}: the scores of a trial are NaN or infinite; the export is broken, export again")
