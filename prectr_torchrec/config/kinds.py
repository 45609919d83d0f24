"""The kinds of rankers: what each can be told, what it reads, and which class it is built of.

A kind is a section here and a class in `modules/rankers/`: its fields are the keyword arguments of the class's `build`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from prectr_torchrec.config.base import Section
from prectr_torchrec.config.data import Effect
from prectr_torchrec.config.parts import (
    CountsPart,
    FeaturesPart,
    FurtherMatchPart,
    GradePart,
    LabelCountersPart,
    MatchPart,
    NumbersPart,
    Parts,
    PartsConfig,
    StatisticsPart,
    VectorsPart,
    VectorTastePart,
)
from prectr_torchrec.config.reads import Reads


class RankerSection(Section):
    """What all kinds of rankers have in common."""

    built_of: ClassVar[str]
    """`module:class` below `modules/rankers/`."""
    losses: ClassVar[dict[str, float]] = {"click": 1.0}
    """What it learns from, and the weights that are not set."""
    predicts_labels: ClassVar[bool] = False
    """Whether it predicts `data.labels` beside the click."""
    elsewhere: ClassVar[frozenset[str]] = frozenset({"kind", "parts"})
    """Settings that are not the class's own: `parts` come to it as what builds them."""
    kind: str
    parts: Parts = Parts()
    """What its tower reads."""
    position_bias: bool = True
    position_count: int = Field(50, ge=1)
    """Positions with a bias of their own; further down shares the last one."""

    @property
    def encodes(self) -> bool:
        """Whether it has the text encoder of the section `text`."""
        return False

    def finds(self) -> frozenset[str]:
        """What losses can read of it besides probabilities: `levels`, `incentive`, `prior`."""
        return self.parts.finds()

    def reads(self) -> Reads:
        """What the ranker reads besides looked-up ids."""
        return self.parts.reads()

    def compared_sequences(self) -> frozenset[str]:
        """Sequences whose looked-up ids are read."""
        return self.parts.compares()

    @property
    def position_corrected(self) -> bool:
        """Whether counters are read with the examination of their positions; else the samples' `*_examined` stay unread."""
        return self.parts.position_corrected


class RelevanceSection(RankerSection):
    """Rankers with a relevance side: levels from the texts."""

    elsewhere: ClassVar[frozenset[str]] = frozenset({"kind", "parts", "text", "match", "relevance_tower"})
    text: bool = True
    """The text encoder; false: match features only."""
    match: bool = True
    """Hand-made features of text match between query and title."""
    relevance_tower: list[int] = [128, 64]
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def encodes(self) -> bool:
        """As of `RankerSection`."""
        return self.text


class PRECTRConfig(RelevanceSection):
    """One probability from relevance levels and click, with the user's own interest and preferences."""

    built_of: ClassVar[str] = "prectr:PRECTR"
    losses: ClassVar[dict[str, float]] = {"click": 1.0, "anchor": 0.3, "consistency": 0.3, "load_balance": 0.01}
    predicts_labels: ClassVar[bool] = True
    kind: Literal["prectr"] = "prectr"
    cross_layers: int = Field(0, ge=0)
    """Layers of TorchRec's low-rank cross network (DCN) in front of the click tower."""
    mixture: bool = True
    """One probability from relevance levels and click; false: a single click logit."""
    parts: PartsConfig = PartsConfig()
    """What the click tower reads, and what else moves its logits."""
    grade_overrides: bool = True
    """A grade known when scoring replaces the predicted level distribution; `parts.grade` is what the click tower sees of it."""
    click_tower: list[int] = [256, 128]
    swap_share: float = Field(1.0, gt=0, le=1)
    """Share of the rows, drawn anew in each step, whose title is swapped where a loss asks for it. An interaction that reads
    texts together reads these pairs besides those of the log."""

    def finds(self) -> frozenset[str]:
        """As of `RankerSection`."""
        return super().finds() | {"levels", "level_clicks"}

    def reads(self) -> Reads:
        """As of `RankerSection`."""
        read = super().reads()
        return read._replace(texts=read.texts | {"query", "title"})


class DNNParts(Parts):
    """Those of rankers without a relevance tower."""

    features: FeaturesPart | None = FeaturesPart()
    counts: CountsPart | None = CountsPart()
    statistics: StatisticsPart | None = StatisticsPart()
    label_counters: LabelCountersPart | None = LabelCountersPart()
    numbers: NumbersPart | None = None
    vectors: VectorsPart | None = None
    vector_taste: VectorTastePart | None = None
    grade: GradePart | None = GradePart()
    match: MatchPart | None = MatchPart()
    further_match: FurtherMatchPart | None = None


class TowerSection(RankerSection):
    """Rankers of one tower, without a relevance side."""

    predicts_labels: ClassVar[bool] = True
    parts: DNNParts = DNNParts()
    """What the tower reads."""
    tower: list[int] = [256, 128]
    dropout: float = Field(0.0, ge=0, lt=1)


class DNNConfig(TowerSection):
    """Embeddings and a multilayer perceptron."""

    built_of: ClassVar[str] = "dnn:DNN"
    kind: Literal["dnn"] = "dnn"


class DCNConfig(TowerSection):
    """`dnn` with a cross network in front of its tower."""

    built_of: ClassVar[str] = "dcn:DCN"
    kind: Literal["dcn"] = "dcn"
    cross_layers: int = Field(2, ge=1)
    """Layers of TorchRec's low-rank cross network."""


class DINConfig(TowerSection):
    """`dnn` with an activation unit over the own history (DIN)."""

    built_of: ClassVar[str] = "din:DIN"
    kind: Literal["din"] = "din"
    attention: list[int] = Field([36], min_length=1)
    """Hidden layers of the activation unit."""
    activation: Literal["dice", "prelu"] = "dice"
    """After each of them."""

    def reads(self) -> Reads:
        """As of `RankerSection`."""
        read = super().reads()
        return read._replace(sequences=read.sequences | {"history"})

    def compared_sequences(self) -> frozenset[str]:
        """As of `RankerSection`."""
        return super().compared_sequences() | {"history"}


class MMoEConfig(TowerSection):
    """Experts that all labels share, and of each label a gate over them and layers of its own (MMoE)."""

    built_of: ClassVar[str] = "mmoe:MMoE"
    kind: Literal["mmoe"] = "mmoe"
    num_experts: int = Field(4, ge=1, le=64)
    expert: list[int] = Field([256], min_length=1)
    """Hidden layers of each expert."""
    tower: list[int] = [128]
    """Hidden layers of each label, on its mixture of the experts."""


TASTE = re.compile(r"candidate_(\w+)_taste")
"""A feature with the vectors of an attribute of items."""


class MixedParts(Parts):
    """Those of mixed effects: what they are worth to all, and of candidates what rows have coefficients of."""

    numbers: NumbersPart | None = None
    vectors: VectorsPart | None = None


class MixedConfig(RelevanceSection):
    """Mixed effects: rows with a prior for users, queries, groups and items; it reads no past.

    A feature whose name ends in `_effect` has rows of means and widths, half of the table's dim each: of an offset, of what is
    wanted of relevance and, where it is wider, of each declared number and each element of projected vectors, and then of a
    taste. `candidate_ATTRIBUTE_taste` are vectors of the item, means and widths too. All other features add the sum of their
    vectors to the logit: what a tag or a device is worth to all.
    """

    built_of: ClassVar[str] = "mixed_effects:MixedEffects"
    losses: ClassVar[dict[str, float]] = {"click": 1.0, "prior": 1.0, "anchor": 1.0, "random_negatives": 2.0}
    kind: Literal["mixed"] = "mixed"
    parts: MixedParts = MixedParts()
    relevance: bool = True
    """A relevance side, which says what level a candidate without a grade has; false: the middle grade stands for it."""
    taste: int = Field(8, ge=0)
    """Width of the titles' vectors, sums of their frequent words'; 0: titles have none."""
    taste_share: float = Field(0.0075, gt=0, le=1)
    """Of the texts, queries and titles, that a word has to be in to have a vector."""
    taste_sd: float = Field(0.2, gt=0)
    """Standard deviation of the prior of tastes. Those of offsets and slopes are estimated."""
    posterior: dict[Effect, int] = {}
    """Whose effects are inferred from the samples' sums over past events in place of rows, and how many; set by `prectr fuse`."""
    text: bool = False
    relevance_tower: list[int] = [64, 32]

    @property
    def encodes(self) -> bool:
        """As of `RankerSection`."""
        return self.relevance and self.text

    def finds(self) -> frozenset[str]:
        """As of `RankerSection`."""
        return frozenset({"prior", *["levels"] * self.relevance})

    def reads(self) -> Reads:
        """As of `RankerSection`."""
        return Reads(
            request=frozenset({f"{who}_{'sums' if who in self.posterior else 'trained'}" for who in ("user", "query", "group")}),
            candidate=frozenset({"item_trained"}),
            texts=frozenset({"query", "title"} if self.relevance else {"title"} if self.taste else ()),
            declared=self.parts.reads().declared,
        )


def _kind(section: Any) -> str:
    """Of a section, or of a tree that is to be one; `prectr` where none is said."""
    return str(section.get("kind", "prectr") if isinstance(section, dict) else getattr(section, "kind", "prectr"))


_Trained = (
    Annotated[PRECTRConfig, Tag("prectr")]
    | Annotated[DNNConfig, Tag("dnn")]
    | Annotated[DCNConfig, Tag("dcn")]
    | Annotated[DINConfig, Tag("din")]
    | Annotated[MMoEConfig, Tag("mmoe")]
    | Annotated[MixedConfig, Tag("mixed")]
)


class Member(Section):
    """A ranker within `fused`."""

    model: Annotated[_Trained, Discriminator(_kind)]
    features: list[str]
    """Those of the run's features that it reads."""


class FusedConfig(RankerSection):
    """Rankers that were trained apart, as one: a weighted sum of their click logits. `prectr fuse` makes it."""

    built_of: ClassVar[str] = "fused:Fused"
    elsewhere: ClassVar[frozenset[str]] = frozenset({"kind", "parts", "members"})
    kind: Literal["fused"] = "fused"
    members: dict[str, Member] = Field(min_length=1)

    @property
    def encodes(self) -> bool:
        """As of `RankerSection`."""
        return any(member.model.encodes for member in self.members.values())

    @property
    def position_corrected(self) -> bool:
        """As of `RankerSection`; each member reads what it was trained on."""
        return any(member.model.position_corrected for member in self.members.values())

    def finds(self) -> frozenset[str]:
        """As of `RankerSection`: nothing, since members learn apart."""
        return frozenset()

    def reads(self) -> Reads:
        """As of `RankerSection`."""
        parts = [member.model.reads() for member in self.members.values()]
        return Reads(*(frozenset().union(*fields) for fields in zip(*parts, strict=True)))

    def compared_sequences(self) -> frozenset[str]:
        """As of `RankerSection`."""
        return frozenset().union(*(member.model.compared_sequences() for member in self.members.values()))


_ABSTRACT = (RelevanceSection, TowerSection)
KINDS: dict[str, type[RankerSection]] = {
    kind.model_fields["kind"].default: kind
    for section in (RankerSection, *_ABSTRACT)
    for kind in section.__subclasses__()
    if kind not in _ABSTRACT
}
ModelConfig = Annotated[_Trained | Annotated[FusedConfig, Tag("fused")], Discriminator(_kind)]
