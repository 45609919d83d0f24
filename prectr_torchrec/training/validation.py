"""Validation figures over all ranks, by the definitions of `metrics`: the same as `evaluate` gives for the same predictions.

Ranking is measured at the reference position, where candidates are ranked, and probabilities at the logged one, where the clicks
come from. A measure that the clicks cannot carry, with one class or none, is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from prectr_torchrec import metrics as m
from prectr_torchrec.checkpoints.best import GROUPS, ValidationLoss, request_groups
from prectr_torchrec.data.reader.batch import SearchBatch


class Validation(NamedTuple):
    """What was measured on the validation part."""

    figures: dict[str, float | None]
    """`ne`, `auc`, `gauc_request`, `calibration`; of another label than the click with `_LABEL` behind."""
    loss: ValidationLoss


class ValidationMetrics:
    """Normalised entropy, AUC, GAUC by request and calibration of the logged clicks, or of another label.

    Args:
        device: of this rank, where sums over ranks are taken.
        label: its name.
    """

    def __init__(self, device: torch.device, label: str = "click") -> None:
        self._device, self._label = device, label
        self._rows: list[tuple[m.Array, ...]] = []

    def update(self, batch: SearchBatch, *, logged: Tensor, reference: Tensor) -> None:
        """Adds a batch's candidates of which the label is known.

        Args:
            batch: on any device.
            logged: (C,) logits at the logged positions.
            reference: (C,) logits with the position held at its reference.
        """
        click, weight, _ = batch.labels()[self._label]
        real = (weight > 0).cpu()
        columns = (batch["request_id"].cpu()[batch.candidate_request.cpu()], click, logged, reference)
        self._rows.append(tuple(column.cpu()[real].numpy() for column in columns))

    def compute(self) -> Validation:
        """The figures over all ranks; collective.

        Raises:
            ValueError: a prediction is not finite, on any rank.
        """
        request, click, logged, reference = self._columns()
        finite = np.isfinite(logged) & np.isfinite(reference)
        # losses are clipped to a probability's own resolution, so that a logit that is not finite would not show in them
        sums = self._sums(request[finite], click[finite], m.sigmoid(logged[finite]), _float32_sigmoid(reference[finite]))
        total = self._over_ranks(np.append(sums.ravel(), (~finite).sum()))
        if total[-1]:
            raise ValueError(f"validation: predictions are not finite in {total[-1]:.0f} rows; the model has diverged")
        rows, clicks, loss, predicted, won, gauc_rows = total[:-1].reshape(sums.shape)
        validation_loss = ValidationLoss(clicks=int(clicks.sum()), rows=rows.tolist(), loss=loss.tolist())
        return Validation(
            {
                "ne": validation_loss.ne,
                "auc": self._auc(_float32_sigmoid(reference), click),
                "gauc_request": float(won.sum() / gauc_rows.sum()) if gauc_rows.sum() else None,
                "calibration": float(predicted.sum() / clicks.sum()) if clicks.sum() else None,
            },
            validation_loss,
        )

    def _columns(self) -> tuple[m.Array, ...]:
        empty = (np.zeros(0, np.int64), *[np.zeros(0, np.float32)] * 3)
        return tuple(np.concatenate(parts) for parts in zip(empty, *self._rows, strict=True))

    def _sums(self, request: m.Array, click: m.Array, probability: m.Array, score: m.Array) -> m.Array:
        """(6, GROUPS) float64 of this rank: rows, clicks, log loss, predicted clicks, and the two sums of GAUC."""
        if not len(request):
            return np.zeros((6, GROUPS))
        group, dense = request_groups(request), m.dense(request)
        by_row = (np.ones(len(click)), click, m.log_losses(probability, click), probability)
        by_request = m.gauc_sums(score, click, dense)  # a request is on one rank whole
        return np.stack(
            [
                *(np.bincount(group, column, GROUPS) for column in by_row),
                *(np.bincount(request_groups(np.unique(request)), column, GROUPS) for column in by_request),
            ]
        )

    def _over_ranks(self, sums: m.Array) -> m.Array:
        total = torch.from_numpy(sums).to(self._device)
        dist.all_reduce(total)
        return np.asarray(total.cpu().numpy())

    def _auc(self, score: m.Array, click: m.Array) -> float | None:
        """Over the pairs of all rows, which no sums give: scores and clicks of all ranks meet on each."""
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (score, click.astype(bool)))
        scores, clicks = (np.concatenate(parts) for parts in zip(*everyone, strict=True))
        return m.auc(scores, clicks.astype(np.float64))


def of_all_labels(metrics: Mapping[str, ValidationMetrics]) -> Validation:
    """The figures of all labels; the loss is the click's. Collective."""
    found = {label: measured.compute() for label, measured in metrics.items()}
    figures = dict(found["click"].figures)
    for label, of_label in found.items():
        if label != "click":
            figures |= {f"{name}_{label}": value for name, value in of_label.figures.items()}
    return Validation(figures, found["click"].loss)


def _float32_sigmoid(logit: m.Array) -> m.Array:
    """As scoring takes it of the model's logits: what is one score there is one here."""
    return torch.from_numpy(logit).sigmoid().numpy()
