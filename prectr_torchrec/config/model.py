"""The configuration of the model: which parts it has, and their sizes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prectr_torchrec.config.base import Section


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


class ModelConfig(Section):
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
    statistics: list[Literal["user", "query", "group", "item"]] = ["user", "query", "item"]
    """Whose strictly past counters are dense features: by level those of the user, of others under the query and under its
    group; of the item over all levels."""
    position_bias: bool = True
    position_count: int = Field(50, ge=1)
    """Positions with a bias of their own; further down shares the last one."""
    known_grade: Literal["override", "feature", "none"] = "override"
    """A grade known when scoring: `override` replaces the predicted level distribution and enters the click tower;
    `feature` only enters the click tower; `none` leaves it unused."""
    relevance_tower: list[int] = [128, 64]
    click_tower: list[int] = [256, 128]
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def position_corrected(self) -> bool:
        """Whether counters are read with the examination of their positions; else the samples' `*_examined` stay unread."""
        return self.preference.own or self.preference.peers or "group" in self.statistics
