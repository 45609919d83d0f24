"""Load balance: the incentive's experts are all used."""

from __future__ import annotations

from torch import Tensor

from ..inputs import Inputs
from ..rankers.base import Predictions
from .base import Label, Loss


class LoadBalance(Loss):
    """Squared coefficient of variation of the mean loads of the incentive's experts over the rows with a click label.

    See `load_balance`. Of a model's findings it reads those of the part `personal`.

    Example::

        from types import SimpleNamespace

        gate = torch.full((2, 3), 1 / 3)  # raise, lower and leave are used alike
        personal = PersonalFindings(Preference(torch.zeros(2, 8), torch.zeros(2, 3)), Incentive(torch.zeros(2, 4), gate))
        findings = SimpleNamespace(parts={"personal": personal})
        inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        labels = {"click": Label(torch.zeros(2), torch.ones(2))}
        assert LoadBalance()(Predictions({}, {}, own=findings), inputs, labels)["load_balance"] < 1e-6
    """

    def forward(self, predictions: Predictions, inputs: Inputs, labels: dict[str, Label]) -> dict[str, Tensor]:
        """`load_balance` in training, where there is an incentive."""
        personal = predictions.own.parts.get("personal")
        if personal is None or personal.incentive is None or not self.training:
            return {}
        return {"load_balance": load_balance(personal.incentive.gate, labels["click"].weight)}


def load_balance(gate: Tensor, weight: Tensor) -> Tensor:
    r"""Squared coefficient of variation of the experts' mean loads (arXiv 1701.06538); zero when all are used alike.

    With the weights :math:`g_{ce}` of expert :math:`e = 1..E` for candidate :math:`c` and the mean loads :math:`m_e` of the
    candidates that count, it is :math:`\mathrm{var}_e(m_e) / \mathrm{mean}_e(m_e)^2`.

    Args:
        gate: (C, E) float, expert weights.
        weight: (C,) float, 1, or 0 for rows that do not count.

    Returns:
        A float scalar.

    Example::

        gate = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
        assert load_balance(gate, torch.ones(2)).item() == 0.0
    """
    load = (gate * weight.unsqueeze(1)).sum(0) / weight.sum().clamp(min=1.0)
    return load.var(unbiased=False) / load.mean().square().clamp(min=1e-12)
