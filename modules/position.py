"""Position bias as an additive logit."""

from __future__ import annotations

from torch import Tensor, nn


class PositionBias(nn.Module):
    """A learned logit for each logged position, zero at the reference.

    Trained with the logged positions; scoring passes position 0 and so holds it at the reference.

    Args:
        num_positions: positions with a bias of their own; deeper ones share the last.
        reference: the position that 0 ("not logged") stands for; its bias is zero by definition.
    """

    def __init__(self, num_positions: int, *, reference: int = 1) -> None:
        super().__init__()
        if not 1 <= reference <= num_positions:
            raise ValueError(f"reference {reference} must lie in 1..{num_positions}")
        self.num_positions, self.reference = num_positions, reference
        self.bias = nn.Embedding(num_positions + 1, 1)
        nn.init.zeros_(self.bias.weight)

    def forward(self, position: Tensor) -> Tensor:
        """Args: position: (C,) int64. Returns: (C, 1)."""
        position = position.masked_fill(position == 0, self.reference).clamp(max=self.num_positions)
        return self.bias(position) - self.bias.weight[self.reference]
