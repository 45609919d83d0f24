"""How the learning rates of a stage go, whatever is trained: they rise and fall linearly."""

from __future__ import annotations


def warmup(step: int, total: int, steps: int) -> float:
    """The share of its peak that a rate has risen to.

    Args:
        step: steps done.
        total: of the stage.
        steps: of the warm-up, which takes half of the stage at most.

    Example::

        assert [warmup(step, 8, 100) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / max(min(steps, total // 2), 1))


def decay(step: int, total: int) -> float:
    """The share of its peak that is left of a rate; what is done beyond the stage is done at the rate of its last step.

    Example::

        assert [decay(step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.25]
    """
    return max(total - step, 1) / max(total, 1)
