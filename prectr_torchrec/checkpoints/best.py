"""Which checkpoint of a run is the best: the latest one whose validation loss is not worse than the lowest beyond its interval.

On few clicks the lowest entropy is a matter of luck. Two checkpoints are compared on the same requests, so that what is hard for
both cancels: with d_g the difference of their loss sums in group g of the requests, r_g its rows, and D the difference of their
means, the standard error of D is that of a ratio over groups, sqrt(G / (G - 1) sum_g (d_g - D r_g)^2) / sum_g r_g. Sums of a
fixed number of groups are the same on any number of ranks, and small enough to be kept beside the checkpoints.

Each checkpoint is compared with the lowest so far, not with the best: small steps for the worse would add up otherwise.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Len
from numpy.typing import NDArray
from typing_extensions import TypedDict

from prectr_torchrec.data.hashing import table_rows
from prectr_torchrec.metrics import NORMAL_95, rate_entropy
from prectr_torchrec.runs.workspace import replace_text
from prectr_torchrec.system.plain_files import read_json

GROUPS = 200
LOWEST = "lowest.json"
"""Beside the checkpoints: the lowest validation loss of the run."""


@dataclass(frozen=True)
class ValidationLoss:
    """Click loss of the validation part, over all ranks; the groups are of requests, by `request_groups`."""

    clicks: int
    rows: list[float]
    """(GROUPS,) rows with a click label."""
    loss: list[float]
    """(GROUPS,) sums of the log loss at the logged positions, nats."""

    @property
    def ne(self) -> float | None:
        """Normalised entropy; None where the clicks are all of one class, or there are none."""
        rows = sum(self.rows)
        entropy = rate_entropy(self.clicks / rows) if rows else None
        return None if entropy is None else sum(self.loss) / rows / entropy

    def is_worse(self, other: ValidationLoss) -> bool:
        """Whether the loss is higher than another checkpoint's on the same rows, beyond the 95 % interval of the difference."""
        rows, difference = np.array(self.rows), np.array(self.loss) - np.array(other.loss)
        mean, groups = difference.sum() / rows.sum(), np.count_nonzero(rows)
        if groups < 2:
            return False  # one group has no interval: nothing is known
        error = np.sqrt(groups / (groups - 1) * np.sum(np.square(difference - mean * rows))) / rows.sum()
        return bool(mean > NORMAL_95 * error)


_Sums = Annotated[list[float], Len(GROUPS, GROUPS)]


class _Lowest(TypedDict):
    clicks: int
    rows: _Sums
    loss: _Sums


def request_groups(request_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group of each request, in 0..GROUPS - 1, whatever the ranks."""
    return table_rows(request_id, GROUPS)


def choose_best(folder: Path, loss: ValidationLoss) -> bool:
    """Whether a checkpoint with this loss is the best of the run now; keeps the lowest loss in the folder of the checkpoints.

    Args:
        folder: of the checkpoints.
        loss: of the checkpoint; one without an entropy chooses nothing.
    """
    if loss.ne is None:
        return False
    path = folder / LOWEST
    lowest = ValidationLoss(**read_json(path, _Lowest)) if path.is_file() else loss
    if sum(loss.loss) <= sum(lowest.loss):
        replace_text(path, json.dumps(asdict(loss)))
    return not loss.is_worse(lowest)
