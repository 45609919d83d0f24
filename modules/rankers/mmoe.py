"""MMoE: experts that all labels share, of which each label has a mixture of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import hidden_layers
from ..parts.base import Part
from ..parts.position import Examination
from .parted import TowerRanker


class ExpertTower(nn.Module):
    r"""Logits of the click and of further labels from experts that they share.

    With the features :math:`x` of a candidate and E experts :math:`f_e`, perceptrons of one shape, a label :math:`l` has a gate
    :math:`g_l(x) = \mathrm{softmax}(W_l x)` over them and a perceptron :math:`h_l` of its own on what it takes of them:

    .. math:: z_l = h_l\Big(\sum_{e = 1}^E g_{l, e}(x) \, f_e(x)\Big).

    Labels that have little in common come to use different experts, where one shared bottom would have to please all of them
    (MMoE: Ma et al., KDD 2018, doi 10.1145/3219819.3220007).

    Args:
        in_dim: width of the concatenated inputs.
        num_experts: E.
        expert: widths of the hidden layers of an expert.
        tower: widths of the hidden layers of a label; may be none.
        dropout: on all hidden layers.
        labels: those beside the click.

    Example::

        tower = ExpertTower(24, num_experts=3, expert=[32], tower=[16], labels=["order"])
        logits = tower(torch.randn(5, 24))
        assert logits["click"].shape == logits["order"].shape == (5, 1)
    """

    def __init__(
        self,
        in_dim: int,
        *,
        num_experts: int = 4,
        expert: Sequence[int] = (256,),
        tower: Sequence[int] = (128,),
        dropout: float = 0.0,
        labels: Iterable[str] = (),
    ) -> None:
        super().__init__()
        names = [f"of_{label}" for label in ("click", *labels)]
        width = [*expert, *tower][-1]
        self.experts = nn.ModuleList(hidden_layers(in_dim, list(expert), dropout) for _ in range(num_experts))
        self.gates = nn.ModuleDict({name: nn.Linear(in_dim, num_experts, bias=False) for name in names})
        self.heads = nn.ModuleDict(
            {name: nn.Sequential(hidden_layers(expert[-1], list(tower), dropout), nn.Linear(width, 1)) for name in names}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The logits of candidates.

        Args:
            x: (C, in_dim) float.

        Returns:
            By label, `click` first, (C, 1) float.
        """
        found = torch.stack([expert(x) for expert in self.experts], dim=1)  # (C, E, width)
        logits = {}
        for name, gate in self.gates.items():
            mixed = (gate(x).softmax(1).unsqueeze(2) * found).sum(1)
            logits[name.removeprefix("of_")] = self.heads[name](mixed)
        return logits


class MMoE(TowerRanker):
    r"""Click and further labels from the features of parts, by an `ExpertTower`.

    All else is as of `DNN`: the parts, the position, and the chain of labels.

    Args:
        parts: what the tower reads, by name, in order.
        num_experts, expert, tower, dropout: as of `ExpertTower`.
        position: examination by position; None: the position has no part.
        labels: those beside the click -> what comes before each.

    Example::

        widths = Widths(request={"user_id": 8}, candidate={"item_id": 8}, sequences={})
        model = MMoE({"features": LookedUpFeatures(widths)}, num_experts=2, expert=[32], tower=[16], labels={"order": "click"})
        inputs = Inputs(
            {"user_id": torch.randn(1, 8)}, {"item_id": torch.randn(2, 8)}, {}, {},
            request_weight=torch.ones(1), candidate_request=torch.tensor([0, 0]), candidate_weight=torch.ones(2),
        )
        found = model(inputs).ranking
        assert (found["order"].log_yes < found["click"].log_yes).all()
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        *,
        num_experts: int = 4,
        expert: Sequence[int] = (256,),
        tower: Sequence[int] = (128,),
        dropout: float = 0.0,
        position: Examination | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(parts, position=position, labels=labels)
        layers: dict[str, Any] = {"num_experts": num_experts, "expert": expert, "tower": tower, "dropout": dropout}
        self.tower = ExpertTower(self.num_features, **layers, labels=self.after)
