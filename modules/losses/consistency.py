"""Semantic consistency: levels and click probabilities in one order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import weighted_mean


def consistency_loss(level_logits: Tensor, weight: Tensor, margin: float) -> Tensor:
    """Semantic consistency: a higher level never has the lower click probability.

    The papers name it; this form, a hinge on neighbouring levels, is re-derived here.

    Args:
        level_logits: (C, K).
        weight: (C,).
        margin: in probability.
    """
    probability = torch.sigmoid(level_logits)
    return weighted_mean(F.relu(margin + probability[:, :-1] - probability[:, 1:]).mean(1), weight)
