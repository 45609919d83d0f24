"""The parts of rankers: what each can be told, what it reads, and which class it is built of.

A part is a section here, a field of `PartsConfig`, which has those of PRECTR, or of the parts of another kind of ranker, and a
class in `modules/parts/`: the section's fields are the keyword arguments of the class's `build`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from prectr_torchrec.config.base import Section
from prectr_torchrec.config.reads import COUNTS, Reads, counters

Whose = Literal["user", "query", "group", "item"]


class PartSection(Section):
    """What all parts have in common."""

    built_of: ClassVar[str]
    """`module:class` below `modules/parts/`."""

    def finds(self) -> frozenset[str]:
        """What losses can read of it."""
        return frozenset()

    def reads(self, *, corrected: bool) -> Reads:
        """What the part reads besides looked-up ids; `corrected`: counters are read with what was examined."""
        return Reads()

    def compares(self) -> frozenset[str]:
        """Sequences whose looked-up ids it compares with candidates or requests."""
        return frozenset()

    @property
    def position_corrected(self) -> bool:
        """Whether it wants counters to be read with the examination of their positions."""
        return False


class FeaturesPart(PartSection):
    """The looked-up ids of the candidate and its request."""

    built_of: ClassVar[str] = "features:LookedUpFeatures"


class InterestPart(PartSection):
    """Target attention over the user's own history."""

    built_of: ClassVar[str] = "interest:Interest"
    dim: int = Field(32, ge=4)
    num_heads: int = Field(2, ge=1)

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        return Reads(sequences=frozenset({"history"}))

    def compares(self) -> frozenset[str]:
        """As of `PartSection`."""
        return frozenset({"history"})


class CountsPart(PartSection):
    """How much past there is of the user and the query."""

    built_of: ClassVar[str] = "features:PastCounts"

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        return Reads(request=frozenset(COUNTS))


class StatisticsPart(PartSection):
    """Strictly past counters as dense features."""

    built_of: ClassVar[str] = "statistics:Counters"
    whose: list[Whose] = ["user", "query", "item"]
    """By level those of the user, of others under the query and under its group; of the item over all levels."""

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        found = {who: counters(who, corrected=corrected) for who in self.whose}
        item = found.pop("item", frozenset())
        return Reads(request=frozenset().union(*found.values()), candidate=item)

    @property
    def position_corrected(self) -> bool:
        """As of `PartSection`."""
        return "group" in self.whose


class LabelCountersPart(PartSection):
    """Strictly past counters of the labels beside the click; nothing where `data.labels` has none."""

    built_of: ClassVar[str] = "label_counters:LabelCounters"
    whose: list[Whose] = ["user", "query", "item"]
    """As of `statistics`."""

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        clicked = frozenset("clicked" if who == "item" else f"{who}_clicked" for who in self.whose)
        return Reads(request=clicked - {"clicked"}, candidate=clicked & {"clicked"}, declared=frozenset({"label"}))


class NumbersPart(PartSection):
    """The numbers of `data.columns`."""

    built_of: ClassVar[str] = "declared:Numbers"
    encoding: Literal["bins", "standard"] = "bins"
    """Piecewise linear over quantile bins, or standardised; of the train part, as `prepare` learns both."""

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        return Reads(declared=frozenset({"number"}))


class VectorsPart(PartSection):
    """The vectors of `data.columns`."""

    built_of: ClassVar[str] = "declared:Vectors"
    dim: int = Field(16, ge=1)
    """Width that each is projected to, once it is standardised by what `prepare` learns of the train part."""

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        return Reads(declared=frozenset({"vector"}))


class GradePart(PartSection):
    """A known grade as features."""

    built_of: ClassVar[str] = "grade:KnownGrade"
    dim: int = Field(8, ge=1)
    """Width of the level's vector."""
    missing: Literal["marked", "modelled"] = "marked"
    """What stands for a missing grade: a mark; or besides the relevance tower's levels, and whether the request has any grade."""


class TextPart(PartSection):
    """The relevance vector and the match features."""

    built_of: ClassVar[str] = "features:TextFeatures"

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        return Reads(texts=frozenset({"query", "title"}))


class MatchPart(PartSection):
    """Hand-made features of text match between query and title, of rankers without a relevance side."""

    built_of: ClassVar[str] = "features:MatchFeatures"

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        return Reads(texts=frozenset({"query", "title"}))


class FurtherMatchPart(PartSection):
    """Features of text match between the query and the further texts of items, the `text` columns of `data.columns.items`."""

    built_of: ClassVar[str] = "texts:FurtherMatch"

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        return Reads(texts=frozenset({"query"}), declared=frozenset({"text"}))


class FurtherEncodingsPart(PartSection):
    """What the text encoder makes of the query and the further texts of items."""

    built_of: ClassVar[str] = "texts:FurtherEncodings"
    dim: int = Field(32, ge=1)
    """Width that each is projected to."""

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        return Reads(texts=frozenset({"query"}), declared=frozenset({"text"}))


class TastePart(PartSection):
    """Taste vectors, inferred from the past events' titles."""

    built_of: ClassVar[str] = "taste:TitleTaste"
    dim: int = Field(16, ge=1)

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        return Reads(sequences=frozenset({"history"}), texts=frozenset({"title", "history_title"}))


class VectorTastePart(PartSection):
    """Taste, inferred from vectors of the past events' items: those of `data.columns.items` with `history: true`."""

    built_of: ClassVar[str] = "vector_taste:VectorTaste"
    dim: int = Field(16, ge=1, le=64)
    """Width that each vector is projected to."""
    whose: list[Literal["own", "peers"]] = Field(["own"], min_length=1, max_length=2)
    """The user's own events, those of others under the query, or both."""

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        sequences = frozenset({"own": "history", "peers": "peer"}[who] for who in self.whose)
        return Reads(sequences=sequences, declared=frozenset({"vector", *(f"{name}_vector" for name in sequences)}))


class PersonalPart(PartSection):
    """Who wants relevance: the personal and the cross-user parts of PRECTR-V2."""

    built_of: ClassVar[str] = "personal:Personal"
    own: bool = True
    """Relevance preference from the own history: attention by intent and by category, and the own per-level record."""
    peers: bool = True
    """The same of other users under the query and its group."""
    gate: Literal["precision", "mlp", "none"] = "precision"
    """How own, peers and prior are weighted."""
    incentive: Literal["none", "shared", "per_level"] = "per_level"
    """Raise, lower or leave the click logits by relevance against preference: one value, or one per level; none at the prior."""
    dim: int = Field(32, ge=4)
    num_heads: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _of_somebody(self) -> PersonalPart:
        if not (self.own or self.peers):
            raise ValueError("own and peers are both false: a preference is of one of them, or the part is null")
        return self

    def finds(self) -> frozenset[str]:
        """As of `PartSection`."""
        return frozenset({"incentive"} if self.incentive != "none" else ())

    def reads(self, *, corrected: bool) -> Reads:
        """As of `PartSection`."""
        whose = (*(("user",) if self.own else ()), *(("query", "group") if self.peers else ()))
        found: frozenset[str] = frozenset().union(*(counters(who, corrected=True) for who in whose))
        return Reads(request=found | frozenset(COUNTS), sequences=self.compares())

    def compares(self) -> frozenset[str]:
        """As of `PartSection`."""
        return frozenset(name for name, wanted in (("history", self.own), ("peer", self.peers)) if wanted)

    @property
    def position_corrected(self) -> bool:
        """As of `PartSection`."""
        return True


class TitlePart(PartSection):
    """The encoder's vector of the title alone, projected."""

    built_of: ClassVar[str] = "features:TitleFeatures"
    dim: int = Field(32, ge=1)


class Parts(Section):
    """The parts of a kind of ranker by name, in the order in which its tower reads them; null: without."""

    def chosen(self) -> Iterator[tuple[str, PartSection]]:
        """Those that there are."""
        return ((name, part) for name in type(self).model_fields if (part := getattr(self, name)) is not None)

    @property
    def position_corrected(self) -> bool:
        """Whether counters are read with the examination of their positions; else the samples' `*_examined` stay unread."""
        return any(part.position_corrected for _, part in self.chosen())

    def reads(self) -> Reads:
        """What they read together."""
        each = [part.reads(corrected=self.position_corrected) for _, part in self.chosen()]
        return Reads(*(frozenset().union(*read) for read in zip(Reads(), *each, strict=True)))

    def finds(self) -> frozenset[str]:
        """What losses can read of them."""
        return frozenset().union(*(part.finds() for _, part in self.chosen()))

    def compares(self) -> frozenset[str]:
        """Sequences whose looked-up ids are compared."""
        return frozenset().union(*(part.compares() for _, part in self.chosen()))


class PartsConfig(Parts):
    """Those of PRECTR."""

    features: FeaturesPart | None = FeaturesPart()
    interest: InterestPart | None = InterestPart()
    counts: CountsPart | None = CountsPart()
    statistics: StatisticsPart | None = StatisticsPart()
    label_counters: LabelCountersPart | None = LabelCountersPart()
    numbers: NumbersPart | None = None
    vectors: VectorsPart | None = None
    grade: GradePart | None = GradePart()
    text: TextPart | None = TextPart()
    further_match: FurtherMatchPart | None = None
    further_encodings: FurtherEncodingsPart | None = None
    taste: TastePart | None = None
    vector_taste: VectorTastePart | None = None
    personal: PersonalPart | None = None
    title: TitlePart | None = TitlePart()
