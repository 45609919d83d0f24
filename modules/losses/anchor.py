"""The anchor: the level distribution on the grade."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .base import weighted_mean


def anchor_loss(log_pi: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the level distribution (C, K) on the target (C, K); rows of zeros have no part in it. Re-derived here."""
    return weighted_mean(-(target * log_pi).sum(1), (target > 0).any(1).to(log_pi.dtype))


def level_targets(level: Tensor, levels: int) -> Tensor:
    """(C, K) float, 1 at the level (C,) in 1..K; zeros where it is 0."""
    return F.one_hot(level, levels + 1)[:, 1:].float()
