"""What a student learns from a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def divergence(log_pi: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 * KL(teacher_T || student_T)` of distributions softened by T, mean over the rows that the teacher has scored.

    Args:
        log_pi: (B, K) the student's log probabilities.
        teacher: (B, K) probabilities, NaN where there are none.
        temperature: T.
    """
    seen = ~teacher.isnan().any(1)
    soft = (teacher.nan_to_num(1.0).clamp(min=1e-8).log() / temperature).log_softmax(1)
    row = F.kl_div((log_pi / temperature).log_softmax(1), soft, reduction="none", log_target=True).sum(1)
    return temperature**2 * (row * seen).sum() / seen.sum().clamp(min=1)
