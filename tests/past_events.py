"""Past events made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from prectr_torchrec.modules import ComparedEvents, Events


def past(
    vectors: Tensor, lengths: Tensor, level: Tensor, click: Tensor, position: Tensor, age: Tensor, predicted: Tensor | None = None
) -> ComparedEvents:
    """Events compared by (R, L, D) vectors; nothing is predicted unless given."""
    R = vectors.shape[0]
    happened = {"level": level, "click": click, "position": position, "age": age}
    happened["predicted"] = torch.zeros(R, 0, 4) if predicted is None else predicted
    return ComparedEvents(Events(happened, lengths), vectors)


def changed(past: ComparedEvents, **features: Tensor) -> ComparedEvents:
    """The same past with other features of what happened."""
    return past._replace(events=past.events._replace(features={**past.events.features, **features}))
