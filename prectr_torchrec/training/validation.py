"""Validation figures by TorchRec's RecMetrics, over all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchrec.metrics.auc import AUCMetric
from torchrec.metrics.calibration import CalibrationMetric
from torchrec.metrics.gauc import GAUCMetric
from torchrec.metrics.metrics_config import RecTaskInfo
from torchrec.metrics.ne import NEMetric
from torchrec.metrics.rec_metric import RecMetric

from prectr_torchrec.data.batch import SearchBatch

_TASK = "click"


class ValidationMetrics:
    """Normalised entropy, AUC, GAUC by request and calibration of the logged clicks, at their logged positions.

    Args:
        rank, world_size: of the job; `compute` is collective.
        batch_size: C, candidates per batch and rank.
        num_batches: batches to come, so that the window holds all of them.
    """

    def __init__(self, *, rank: int, world_size: int, batch_size: int, num_batches: int, device: torch.device) -> None:
        settings: dict[str, Any] = {
            "world_size": world_size, "my_rank": rank, "batch_size": batch_size, "tasks": [RecTaskInfo(name=_TASK)],
            "window_size": batch_size * max(num_batches, 1) * world_size, "compute_on_all_ranks": True,
        }  # fmt: skip
        kinds: dict[str, type[RecMetric]] = {
            "ne": NEMetric,
            "auc": AUCMetric,
            "gauc": GAUCMetric,
            "calibration": CalibrationMetric,
        }
        self.metrics = {name: kind(**settings).to(device) for name, kind in kinds.items()}

    def update(self, batch: SearchBatch, logit: Tensor) -> None:
        """Args: batch; logit: (C,) of its candidates. Rows without a click label are left out."""
        real = (batch.click_weight > 0).to(logit.device)  # the batch is as it was read, the logits are where the model is
        if not real.any():
            return
        prediction = torch.sigmoid(logit[real].float())
        label, weight = (x.to(logit.device)[real] for x in (batch.click, batch.click_weight))
        per_request = torch.bincount(batch.candidate_request.to(logit.device)[real], minlength=1)
        for name, metric in self.metrics.items():
            extra = {"num_candidates": per_request[per_request > 0]} if name == "gauc" else {}
            metric.update(predictions={_TASK: prediction}, labels={_TASK: label}, weights={_TASK: weight}, **extra)

    def compute(self) -> dict[str, float]:
        """The figures over all ranks."""
        figures = {}
        for name, metric in self.metrics.items():
            computed = metric.compute()
            key = next(k for k in computed if k.endswith(f"window_{name}"))
            figures[name] = float(computed[key].item())
        return figures
