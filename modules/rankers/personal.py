"""The personal side of PRECTR-V2: preference, incentive and taste as shifts of the click logits by level."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..inputs import LookedUp, SearchInputs, counters, past_events
from ..parts.incentive import Incentive, RelevanceIncentive
from ..parts.posterior import Posterior
from ..parts.preference import GateKind, Preference, RelevancePreference
from ..parts.statistics import LevelStatistics
from ..parts.taste import Taste


class PreferenceParts(NamedTuple):
    """Which parts there are; the defaults are none."""

    own: bool = False
    """Relevance preference from the own history."""
    peers: bool = False
    """The same of other users under the query and its group."""
    gate: GateKind = "precision"
    incentive: Literal["none", "shared", "per_level"] = "none"
    taste: int = 0
    """Width of the taste vectors."""
    vocab_size: int = 0
    """Of the title tokens, for taste."""
    special_tokens: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Ids of title tokens that are no words; 0 is padding."""
    dim: int = 32
    heads: int = 2


class Personal(NamedTuple):
    shift: Tensor
    """(C, 1) or (C, K), added to the click logits."""
    features: Tensor
    """(C, num_features) for the click tower."""
    preference: Preference | None
    incentive: Incentive | None
    taste: Posterior | None
    """(C,)."""


class PersonalSide(nn.Module):
    """Everything that depends on who asks and who asked before.

    Args:
        parts: which parts there are.
        dims: feature -> width, of requests and candidates.
        history, peers: event feature -> the feature it is compared with.
        num_levels: K.
        mixture: whether there is a click logit for each level.
        relevance_dim: width of the relevance vector.
    """

    def __init__(
        self,
        parts: PreferenceParts,
        dims: dict[str, int],
        history: dict[str, str],
        peers: dict[str, str],
        *,
        num_levels: int,
        mixture: bool,
        relevance_dim: int,
    ) -> None:
        super().__init__()
        self.parts = parts
        self.history_by_item = {event: to for event, to in history.items() if to.startswith("candidate_")}
        self.history_by_intent = {event: to for event, to in history.items() if event not in self.history_by_item}
        self.item_features = list(dict.fromkeys([*self.history_by_item.values(), *peers.values()]))
        self.peers_by_item = sorted(peers, key=lambda event: self.item_features.index(peers[event]))
        item_dim = sum(dims[name] for name in self.item_features)
        intent_dim = sum(dims[name] for name in self.history_by_intent.values())
        sides = ["user"] * parts.own + ["query", "group"] * parts.peers
        statistics = {who: LevelStatistics(num_levels + 1) for who in sides}
        self.statistics = nn.ModuleDict(statistics)
        self.preference: RelevancePreference | None = None
        self.incentive: RelevanceIncentive | None = None
        self.taste: Taste | None = None
        if statistics:
            self.preference = RelevancePreference(
                intent_dim,
                item_dim,
                num_levels,
                own=parts.own,
                peers=parts.peers,
                statistics_dim=statistics[sides[0]].num_features,
                num_counts=4,
                gate=parts.gate,
                dim=parts.dim,
                num_heads=parts.heads,
            )
        if parts.incentive != "none" and self.preference is not None:
            values = num_levels if parts.incentive == "per_level" and mixture else 1
            self.incentive = RelevanceIncentive(relevance_dim, parts.dim, values)
        if parts.taste:
            self.taste = Taste(parts.vocab_size, dim=parts.taste, num_levels=num_levels, special_tokens=parts.special_tokens)
        self.num_features = 2 * (self.taste is not None) + parts.dim * (self.preference is not None)

    def forward(self, batch: SearchInputs, looked_up: LookedUp, relevance: Tensor) -> Personal:
        """Args: relevance: (C, relevance_dim)."""
        shift = relevance.new_zeros(relevance.shape[0], 1)
        taste = self._taste(batch, looked_up) if self.taste is not None else None
        features = [relevance.new_zeros(relevance.shape[0], 0)]
        if taste is not None:
            shift = shift + taste.mean.unsqueeze(1)
            features += [taste.mean.unsqueeze(1), taste.variance.unsqueeze(1)]
        preference, incentive = None, None
        if self.preference is not None:
            preference = self._preference(self.preference, batch, looked_up)
            features.append(preference.vector)
            if self.incentive is not None:
                incentive = self.incentive(relevance, preference.vector, self.preference.gate.prior)
                shift = shift + incentive.tau
        return Personal(shift, torch.cat(features, dim=1), preference, incentive, taste)

    def _taste(self, batch: SearchInputs, looked_up: LookedUp) -> Posterior:
        assert self.taste is not None
        titles = self.taste.title(batch.title_tokens)[batch.title_index]
        past = self.taste.title(batch.history_title_tokens)[batch.history_title_index]  # (R, L, dim)
        return self.taste(titles, looked_up.slots, past_events(batch, "history", past))

    def _preference(self, module: RelevancePreference, batch: SearchInputs, looked_up: LookedUp) -> Preference:
        intent = [looked_up.request[name] for name in self.history_by_intent.values()]
        statistics = {who: module(*counters(batch, who)) for who, module in self.statistics.items()}
        counts = torch.stack([batch.user_events, batch.user_query_events, batch.query_events, batch.peer_lengths.float()], dim=1)
        return module(
            torch.cat(intent, dim=1) if intent else None,
            looked_up.events("history", self.history_by_intent) if self.parts.own else None,
            looked_up.rows(self.item_features),
            looked_up.events("history", self.history_by_item) if self.parts.own else None,
            looked_up.events("peer", self.peers_by_item) if self.parts.peers else None,
            looked_up.slots,
            batch.candidate_request,
            statistics.get("user"),
            torch.cat([statistics["query"], statistics["group"]], dim=1) if self.parts.peers else None,
            counts.log1p() / 4,
        )
