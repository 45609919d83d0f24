"""What every part of a ranker has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from ..inputs import Inputs, Widths
from ..numbers import NumberColumn
from ..text.match import TextMatch
from ..text.relevance import TextReading, TextRelevance
from ..vectors import VectorColumn


@dataclass(frozen=True)
class Given:
    """What there is to build a ranker or a part for."""

    widths: Widths
    """Of the looked-up features."""
    level_grades: Sequence[float]
    """(K,) the grade that stands for each level."""
    grade_range: tuple[float, float]
    """Lowest and highest grade."""
    vocab_size: int
    """Of the texts' tokens."""
    special_tokens: tuple[int, ...]
    """Ids of tokens that are no words; 0 is padding."""
    match: Callable[[], TextMatch]
    """Makes the features of text match between query and title."""
    relevance: Callable[[], TextRelevance]
    """Makes the relevance side."""
    relevance_dim: int = 0
    """Width of the relevance vector."""
    match_dim: int = 0
    """Width of the match features."""
    title_dim: int = 0
    """Width of the encoder's vector of a title."""
    text_dim: int = 0
    """Width of what a tower reads of an encoded pair of texts."""
    texts: Sequence[str] = ()
    """Further texts of the items, by name."""
    by_level: bool = False
    """Whether there is a logit for each level."""
    numbers: Sequence[NumberColumn] = ()
    """The log's own numbers, and what the train part tells of them."""
    vectors: Sequence[VectorColumn] = ()
    """Its own vectors, alike."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels beside the click -> what comes before each."""
    position_corrected: bool = False
    """Whether counters expect clicks of what was examined, not of all that was shown."""

    @property
    def num_levels(self) -> int:
        """K."""
        return len(self.level_grades)


class ReportedPart(NamedTuple):
    """What predictions, reports and explanations can say of each candidate besides its score."""

    meaning: str
    """In words, for people."""
    width: int = 1
    """n of (C, n) values; 1: (C,)."""
    signed: bool = False
    """Whether it speaks for a candidate above 0 and against it below."""
    names: tuple[str, ...] = ()
    """Of the n values, where each stands for something of its own."""
    where: Literal["everywhere", "predictions", "explanations"] = "everywhere"
    """Whether files of predictions tell it, explanations of single requests, or both."""


class Attention(NamedTuple):
    """What the P candidates of each request attend to among its L events, by H heads."""

    sequence: str
    """Whose events: `history`, `peer`."""
    weights: Tensor
    """(R, H, P, L)."""
    nothing: Tensor | None = None
    """(R, H, P) weight of nothing that fits, where there is such a thing."""

    @classmethod
    def with_prior(cls, sequence: str, weights: Tensor) -> Attention:
        """Of weights (R, H, P, L + 1) that have the prior's in front."""
        return cls(sequence, weights[..., 1:], weights[..., 0])


class PartOutput(NamedTuple):
    """What a part says of each candidate."""

    features: Tensor
    """(C, F) for the towers; F, the part's `num_features`, may be 0."""
    shift: Tensor | None = None
    """(C, 1) or (C, K), added to the logits."""
    report: Mapping[str, Tensor] = {}
    """(C,) or (C, n) by the names of `Part.reported`."""
    own: Any = None
    """The part's own findings, for losses that are its own."""


class Part(nn.Module):
    """A module within a ranker: features for its towers, shifts of its logits, and what it reports.

    Attributes:
        num_features: F, width of its features.
        reported: what it reports of each candidate, by name.
        encodes: further texts of the items that it wants encoded, as `TextReading.further`.

    Example::

        class Freshness(Part):  # the age of each candidate as a feature of the towers
            num_features = 1

            def forward(self, inputs, text):
                return PartOutput(inputs.candidate["age"].log1p())

        inputs = Inputs(
            {}, {"age": torch.tensor([[0.0], [30.0]])}, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2)
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(none, none), none, none, none)  # of a ranker that reads no text
        assert Freshness()(inputs, text).features.shape == (2, 1)
    """

    num_features: int
    reported: ClassVar[Mapping[str, ReportedPart]] = {}
    encodes: Sequence[str] = ()

    @classmethod
    def build(cls, given: Given, **settings: Any) -> Part | None:
        """The part for what there is, with its settings; None where it would have nothing to say.

        Raises:
            ValueError: they do not fit together.
        """
        return cls(**settings)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """What the part says of every candidate.

        Args:
            inputs: of the batch.
            text: what the relevance side makes of each candidate's query and title.
        """
        raise NotImplementedError

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters with a rate and a decay of their own, by the group's name."""
        return {}

    def attention(self, inputs: Inputs) -> dict[str, Attention]:
        """What candidates attend to, by name."""
        return {}
