"""Counters of what follows the click, as dense features: how often what was clicked came into a cart or was ordered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..inputs import Inputs
from ..text.relevance import TextReading
from .base import Given, Part, PartOutput
from .features import LOG_SCALE


class LabelCounters(Part):
    r"""Counters of labels beside the click, over all levels.

    Of a label let :math:`n` be its counter and :math:`m` that of what comes before it, the click or another label. With a learned
    rate :math:`p` and a smoothing :math:`s` the features are the volume and the smoothed residual,

    .. math:: \tfrac14 \log(1 + n), \quad 3 \, \frac{n - p m}{m + s}.

    Zero counters give zero. Re-derived here.

    Args:
        whose: of `user`, `query`, `group`, `item`.
        labels: labels beside the click -> what comes before each.
        smoothing: s, in events of what comes before.
        base_rate: where each p starts.

    Example::

        part = LabelCounters(["user", "item"], {"cart": "click", "order": "cart"})
        inputs = Inputs(
            request={f"user_{what}": torch.rand(1, 5) for what in ("clicked", "carts", "orders")},
            candidate={what: torch.rand(2, 1) for what in ("clicked", "carts", "orders")},
            sequences={},
            texts={},
            request_weight=torch.ones(1),
            candidate_request=torch.tensor([0, 0]),
            candidate_weight=torch.ones(2),
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)
        assert part(inputs, text).features.shape == (2, part.num_features) == (2, 8)
    """

    offsets = ("base_logit",)

    def __init__(
        self, whose: Sequence[str], labels: Mapping[str, str], *, smoothing: float = 5.0, base_rate: float = 0.2
    ) -> None:
        super().__init__()
        self.whose, self.labels, self.smoothing = list(whose), dict(labels), smoothing
        self.base_logit = nn.Parameter(torch.full((len(self.whose), len(self.labels)), base_rate).logit())
        self.num_features = 2 * self.base_logit.numel()

    @classmethod
    def build(cls, given: Given, **settings: Any) -> LabelCounters | None:
        """As of `Part`; None where there are no such labels."""
        return cls(labels=given.labels, **settings) if given.labels else None

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, 2 times whose times labels): volumes and residuals of each in turn."""
        found = []
        for number, who in enumerate(self.whose):
            names = {"click": "clicked", **{label: f"{label}s" for label in self.labels}}
            counts = {label: inputs.counter(who, what).sum(1, keepdim=True) for label, what in names.items()}  # of all levels
            happened = torch.cat([counts[label] for label in self.labels], dim=1)
            before = torch.cat([counts[earlier] for earlier in self.labels.values()], dim=1)
            surplus = happened - self.base_logit[number].sigmoid() * before
            features = torch.cat([happened.log1p() / LOG_SCALE, 3 * surplus / (before + self.smoothing)], dim=1)
            found.append(features if who == "item" else features[inputs.candidate_request])
        return PartOutput(torch.cat(found, dim=1))
