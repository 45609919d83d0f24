"""What a student learns from a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def divergence(log_pi: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""What a student's level distribution lacks of its teacher's (arXiv 1503.02531).

    Let :math:`\pi` be the student's and :math:`\tau` the teacher's distribution over levels :math:`k`, and let :math:`T` soften
    both, :math:`\pi^T_k \propto \pi_k^{1 / T}`. The loss is :math:`T^2 \, \mathrm{KL}(\tau^T \| \pi^T)`, mean over the rows that
    the teacher has scored.

    Args:
        log_pi: (N, K) float, the student's log probabilities.
        teacher: (N, K) float, probabilities, NaN where there are none.
        temperature: T.

    Returns:
        A float scalar.

    Example::

        teacher = torch.tensor([[0.2, 0.8], [torch.nan, torch.nan]])
        same = torch.tensor([[0.2, 0.8], [0.5, 0.5]]).log()
        assert divergence(same, teacher, temperature=2.0).abs() < 1e-6
        assert divergence(same.flip(1), teacher, temperature=2.0) > 0.1
    """
    seen = ~teacher.isnan().any(1)
    soft = (teacher.nan_to_num(1.0).clamp(min=1e-8).log() / temperature).log_softmax(1)
    row = F.kl_div((log_pi / temperature).log_softmax(1), soft, reduction="none", log_target=True).sum(1)
    return temperature**2 * (row * seen).sum() / seen.sum().clamp(min=1)
