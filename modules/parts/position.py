"""Position bias as examination: a click needs the position to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..mixture import LabelProbability

_MOST = 0.99
"""Where the examination of a position that is looked at as often as the reference starts: at 1 its logit would be infinite."""


class Examination(nn.Module):
    r"""The examination hypothesis: what is clicked at a position was looked at there.

    Let :math:`y` be the click, :math:`x` all that is known of a candidate but its position, :math:`p` the position, and
    :math:`P = P(y = 1 | x)` the click probability at the reference position. With a learned examination :math:`\epsilon_p` in
    (0, 1), and 1 at the reference, :math:`P(y = 1 | x, p) = \epsilon_p P`: the position-based model (Richardson et al., WWW
    2007; Craswell et al., WSDM 2008). In log space

    .. math:: \log p_1 = \log \epsilon_p + \log P, \quad
        \log p_0 = \mathrm{logaddexp}(\log(1 - P), \log(1 - \epsilon_p) + \log P).

    Trained with the logged positions; scoring passes position 0, which holds it at the reference.

    Args:
        num_positions: positions with an examination of their own; deeper ones share the last.
        reference: the position that 0 ("not logged") stands for; its examination is 1 by definition.

    Raises:
        ValueError: the reference is not one of the positions.

    Example::

        examination = Examination(10)
        examination.start_from([1.0, 0.7, 0.55])
        log_p = torch.tensor([0.5, 0.5]).log()
        logged = examination(LabelProbability(log_p, log_p), torch.tensor([0, 2]))
        assert torch.allclose(logged.log_yes.exp(), torch.tensor([0.5, 0.35]))
    """

    offsets = ("logit",)

    def __init__(self, num_positions: int, *, reference: int = 1) -> None:
        super().__init__()
        if not 1 <= reference <= num_positions:
            raise ValueError(f"reference {reference} must lie in 1..{num_positions}")
        self.num_positions, self.reference = num_positions, reference
        self.logit = nn.Parameter(torch.full((num_positions + 1,), _MOST).logit())

    def forward(self, probability: LabelProbability, position: Tensor) -> LabelProbability:
        """Moves probabilities of a click, or of what follows it, from the reference to positions.

        Args:
            probability: at the reference, (C,) float each.
            position: (C,) int64 from 1, 0: not logged.

        Returns:
            At the positions, (C,) float each.
        """
        logit, held = self._at(position)
        seen = F.logsigmoid(logit).masked_fill(held, 0.0)
        unseen = F.logsigmoid(-logit).masked_fill(held, -torch.inf)
        yes, no, stop = probability
        return LabelProbability(seen + yes, torch.logaddexp(no, unseen + yes), _where_there(stop, seen))

    def examination(self, position: Tensor) -> Tensor:
        """(C,) float, of positions as of `forward`: 1 at the reference."""
        logit, held = self._at(position)
        return logit.sigmoid().masked_fill(held, 1.0)

    def _at(self, position: Tensor) -> tuple[Tensor, Tensor]:
        return self.logit[position.clamp(max=self.num_positions)], (position == 0) | (position == self.reference)

    @torch.no_grad()
    def start_from(self, examination: Sequence[float]) -> None:
        """Starts from an estimate.

        Args:
            examination: of positions 1, 2, ... against the first, in (0, 1]; deeper ones share the last.
        """
        given = torch.tensor(examination, dtype=self.logit.dtype, device=self.logit.device)
        place = torch.arange(-1, self.num_positions, device=given.device).clamp(0, len(given) - 1)
        self.logit.copy_(given[place].clamp(max=_MOST).logit())


# What looks at its inputs stands in a function of its own, which torch.fx leaves whole.
@torch.fx.wrap
def _where_there(stop: Tensor | None, seen: Tensor) -> Tensor | None:
    return None if stop is None else seen + stop
