"""What every ranker has in common: it reads `Inputs` and gives `Predictions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..inputs import Inputs
from ..mixture import LabelProbability
from ..parts.base import Attention, Given, ReportedPart
from ..text.relevance import TextRelevance


@dataclass
class Predictions:
    """What a ranker makes of a batch. By label: log probabilities (C,) that it is 1, and that it is 0."""

    ranking: dict[str, LabelProbability]
    """With the position held at its reference: what ranks."""
    logged: dict[str, LabelProbability]
    """At the logged positions: what losses and calibration see."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """(C,) or (C, n) as `RankingModel.reported` names them."""
    own: Any = None
    """The model's own findings, for losses that are its own."""


class WordTaste(NamedTuple):
    """What the users of R requests think of W words in titles."""

    tokens: Tensor
    """(W,) int64, the words."""
    worth: Tensor
    """(R, W) float, what a title of this word alone has more in the click logit."""


class RankingModel(nn.Module):
    """From `Inputs` to `Predictions`. It owns no tables.

    Attributes:
        after: the labels that it predicts beside the click -> what comes before each.
        reported: what it reports of each candidate, by name.
        reports_parts: whether it reports in evaluation mode.

    Example::

        class Linear(RankingModel):  # a click logit that is linear in the vectors of item and user
            def __init__(self, dim):
                super().__init__()
                self.logit = torch.nn.Linear(dim, 1)

            def forward(self, inputs):
                z = self.logit(inputs.rows(["item_id", "user_id"])).squeeze(1)  # (C,)
                click = LabelProbability.from_logit(z)
                return Predictions({"click": click}, {"click": click})

        inputs = Inputs(
            {"user_id": torch.randn(1, 4)}, {"item_id": torch.randn(2, 8)}, {}, {},
            request_weight=torch.ones(1), candidate_request=torch.tensor([0, 0]), candidate_weight=torch.ones(2),
        )
        assert Linear(12)(inputs).ranking["click"].logit.shape == (2,)
    """

    after: Mapping[str, str] = {}
    reported: Mapping[str, ReportedPart] = {}
    """What `Predictions.parts` has in evaluation mode while `reports_parts` is on."""
    reports_parts: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """Those that it predicts."""
        return ("click", *self.after)

    @classmethod
    def build(cls, given: Given, **settings: Any) -> RankingModel:
        """The ranker for what there is, with the settings of its kind.

        Raises:
            ValueError: they do not fit together.
        """
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> Predictions:
        """Scores every candidate.

        Args:
            inputs: of the batch.
        """
        raise NotImplementedError

    def start_from(self, examination: Sequence[float], candidates: int = 1) -> None:
        """Starts what a log tells before training from there.

        Args:
            examination: of positions 1, 2, ... against the first, as in `prepared.json`.
            candidates: of the train part.
        """

    def text_side(self) -> TextRelevance | None:
        """What reads query and title, where the ranker has it."""
        return None

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters with rates of their own by the group's name: `encoder`, `relevance`, `taste`, and `rows`
        with a prior; all others are `towers`."""
        return {}

    def word_taste(self, inputs: Inputs) -> WordTaste | None:
        """What the users think of words, where the ranker knows such a thing."""
        return None

    def attention(self, inputs: Inputs) -> dict[str, Attention]:
        """As of `Part.attention`."""
        return {}
