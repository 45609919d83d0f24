"""The kinds of rankers: what each can be told, what it reads, and which class it is built of.

A kind is a section here and a class in `modules/rankers/`: its fields are the keyword arguments of the class's `build`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from prectr_torchrec.config.base import Section
from prectr_torchrec.config.reads import COUNTS, Reads, counters

Whose = Literal["user", "query", "group", "item"]
KnownGrade = Literal["override", "feature", "none"]


class RankerSection(Section):
    """What all kinds of rankers have in common."""

    built_of: ClassVar[str]
    """`module:class` below `modules/rankers/`."""
    losses: ClassVar[dict[str, float]] = {"click": 1.0}
    """What it learns from, and the weights that are not set."""

    def finds(self) -> frozenset[str]:
        """What losses can read of it besides probabilities: `levels`, `incentive`."""
        return frozenset()

    def reads(self) -> Reads:
        """What the ranker reads besides looked-up ids."""
        raise NotImplementedError

    def compared_sequences(self) -> frozenset[str]:
        """Sequences whose looked-up ids are read."""
        return self.reads().sequences


class PreferenceConfig(Section):
    """Who wants relevance, and what else they want: the personal and the cross-user parts of PRECTR-V2."""

    own: bool = False
    """Relevance preference from the own history: attention by intent and by category, and the own per-level record."""
    peers: bool = False
    """The same of other users under the query and its group."""
    gate: Literal["precision", "mlp", "none"] = "precision"
    """How own, peers and prior are weighted."""
    incentive: Literal["none", "shared", "per_level"] = "none"
    """Raise, lower or leave the click logits by relevance against preference: one value, or one per level; none at the prior."""
    taste: int = Field(0, ge=0)
    """Width of the taste vectors, inferred from the past events' titles; 0: none."""
    dim: int = Field(32, ge=4)
    heads: int = Field(2, ge=1)


class PRECTRConfig(RankerSection):
    """One probability from relevance levels and click, with the user's own interest and preferences."""

    built_of: ClassVar[str] = "prectr:PRECTR"
    losses: ClassVar[dict[str, float]] = {"click": 1.0, "anchor": 0.3, "consistency": 0.3, "load_balance": 0.01}
    kind: Literal["prectr"] = "prectr"
    cross_layers: int = Field(0, ge=0)
    """Layers of TorchRec's low-rank cross network (DCN) in front of the click tower."""
    mixture: bool = True
    """One probability from relevance levels and click; false: a single click logit."""
    interest: bool = True
    """Target attention over the user's own history."""
    attention_dim: int = Field(32, ge=4)
    attention_heads: int = Field(2, ge=1)
    preference: PreferenceConfig = PreferenceConfig()
    text: bool = True
    """The text encoder; false: match features only."""
    match: bool = True
    """Hand-made features of text match between query and title."""
    statistics: list[Whose] = ["user", "query", "item"]
    """Whose strictly past counters are dense features: by level those of the user, of others under the query and under its
    group; of the item over all levels."""
    position_bias: bool = True
    position_count: int = Field(50, ge=1)
    """Positions with a bias of their own; further down shares the last one."""
    known_grade: KnownGrade = "override"
    """A grade known when scoring: `override` replaces the predicted level distribution and enters the click tower;
    `feature` only enters the click tower; `none` leaves it unused."""
    relevance_tower: list[int] = [128, 64]
    click_tower: list[int] = [256, 128]
    dropout: float = Field(0.1, ge=0, lt=1)
    swap_share: float = Field(1.0, gt=0, le=1)
    """Share of the rows, drawn anew in each step, whose title is swapped where a loss asks for it. An interaction that reads
    texts together reads these pairs besides those of the log."""

    def finds(self) -> frozenset[str]:
        """As of `RankerSection`."""
        return _chosen(levels=True, incentive=self.preference.incentive != "none")

    @property
    def position_corrected(self) -> bool:
        """Whether counters are read with the examination of their positions; else the samples' `*_examined` stay unread."""
        return self.preference.own or self.preference.peers or "group" in self.statistics

    def reads(self) -> Reads:
        """As of `RankerSection`."""
        preference, corrected = self.preference, self.position_corrected
        whose = {*self.statistics, *(("user",) if preference.own else ()), *(("query", "group") if preference.peers else ())}
        found: frozenset[str] = frozenset().union(*(counters(who, corrected=corrected) for who in whose - {"item"}))
        history = self.interest or preference.own or preference.taste > 0
        return Reads(
            found | set(COUNTS),
            counters("item", corrected=corrected) if "item" in whose else frozenset(),
            _chosen(history=history, peer=preference.peers),
            frozenset({"query", "title"}) | _chosen(history_title=preference.taste > 0),
        )

    def compared_sequences(self) -> frozenset[str]:
        """As of `RankerSection`; taste compares titles."""
        return _chosen(history=self.interest or self.preference.own, peer=self.preference.peers)


def _chosen(**there: bool) -> frozenset[str]:
    return frozenset(name for name, wanted in there.items() if wanted)


def _kind(section: Any) -> str:
    """Of a section, or of a tree that is to be one; `prectr` where none is said."""
    return str(section.get("kind", "prectr") if isinstance(section, dict) else getattr(section, "kind", "prectr"))


KINDS: dict[str, type[RankerSection]] = {kind.model_fields["kind"].default: kind for kind in RankerSection.__subclasses__()}
ModelConfig = Annotated[
    Annotated[PRECTRConfig, Tag("prectr")],
    Discriminator(_kind),
]
