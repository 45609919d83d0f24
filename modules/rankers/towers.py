"""The click tower."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet

from ..layers import hidden_layers


class ClickTower(nn.Module):
    r"""Logits of the click and of further labels, one per relevance level, from all that is known of request and candidate.

    With the features :math:`x` of a candidate, optionally crossed layer by layer, :math:`x_{n + 1} = x \odot (W_n V_n x_n + b_n)
    + x_n` with :math:`x_0 = x` (low-rank DCN-V2, arXiv 2008.13535, as TorchRec has it), the logits are
    :math:`z = W \, \mathrm{MLP}(x_n) + b`. Each further label has layers of its own, as wide, on the features :math:`x`.

    Args:
        in_dim: width of the concatenated inputs.
        hidden: widths of the hidden layers.
        num_logits: K, or 1 without a mixture.
        cross_layers: layers of TorchRec's low-rank cross network before the hidden layers; 0 for none.
        dropout: on the hidden layers.
        labels: those beside the click.

    Example::

        tower = ClickTower(24, [32, 16], num_logits=4, cross_layers=2, labels=["order"])
        logits = tower(torch.randn(3, 24))
        assert logits["click"].shape == logits["order"].shape == (3, 4)
    """

    def __init__(
        self,
        in_dim: int,
        hidden: list[int],
        num_logits: int,
        *,
        cross_layers: int = 0,
        dropout: float = 0.0,
        labels: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.cross = LowRankCrossNet(in_dim, cross_layers, low_rank=min(64, in_dim)) if cross_layers else None
        self.layers = hidden_layers(in_dim, hidden, dropout)
        self.head = nn.Linear(hidden[-1], num_logits)
        of_labels = {
            f"of_{label}": nn.Sequential(hidden_layers(in_dim, hidden, dropout), nn.Linear(hidden[-1], num_logits))
            for label in labels
        }
        self.labels = nn.ModuleDict(of_labels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The logits of candidates.

        Args:
            x: (C, in_dim) float.

        Returns:
            By label, `click` first, (C, num_logits) float.
        """
        crossed = self.cross(x) if self.cross is not None else x
        click = self.head(self.layers(crossed))
        return {"click": click} | {name.removeprefix("of_"): layers(x) for name, layers in self.labels.items()}
