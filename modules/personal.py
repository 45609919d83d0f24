"""The personal side of PRECTR-V2: preference, incentive and taste as shifts of the click logits by level."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .attention import CandidateSlots
from .incentive import Incentive, RelevanceIncentive
from .inputs import LookedUp, SearchInputs
from .posterior import LevelPosterior, Posterior
from .preference import Events, Preference, RelevancePreference
from .statistics import LevelStatistics
from .taste import Taste


class PreferenceParts(NamedTuple):
    """Which parts there are; the defaults are none."""

    own: bool = False
    """Relevance preference from the own history."""
    peers: bool = False
    """The same of other users under the query and its group."""
    gate: Literal["precision", "mlp", "none"] = "precision"
    incentive: Literal["none", "shared", "per_level"] = "none"
    taste: int = 0
    """Width of the taste vectors."""
    vocab_size: int = 0
    """Of the title tokens, for taste."""
    dim: int = 32
    heads: int = 2


class Personal(NamedTuple):
    shift: Tensor
    """(C, K), or (C, 1) without a mixture: added to the click logits."""
    features: Tensor
    """(C, num_features) for the click tower."""
    preference: Preference | None
    incentive: Incentive | None
    levels: dict[str, Posterior]
    """(R, K + 1) preference for each level of "user", "query", "group", where there."""
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
        self, parts: PreferenceParts, dims: dict[str, int], history: dict[str, str], peers: dict[str, str], *, num_levels: int,
        mixture: bool, relevance_dim: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.parts, self.mixture = parts, mixture
        self.history_by_item = {event: to for event, to in history.items() if to.startswith("candidate_")}
        self.history_by_intent = {event: to for event, to in history.items() if event not in self.history_by_item}
        self.item_features = list(dict.fromkeys([*self.history_by_item.values(), *peers.values()]))
        self.peers_by_item = sorted(peers, key=lambda event: self.item_features.index(peers[event]))
        item_dim = sum(dims[name] for name in self.item_features)
        intent_dim = sum(dims[name] for name in self.history_by_intent.values())
        sides = ["user"] * parts.own + ["query", "group"] * parts.peers
        self.levels = nn.ModuleDict({who: LevelPosterior(num_levels) for who in sides})
        self.statistics = nn.ModuleDict({who: LevelStatistics(num_levels + 1) for who in sides if who != "user"})
        self.preference: RelevancePreference | None = None
        self.incentive: RelevanceIncentive | None = None
        self.taste: Taste | None = None
        if parts.own or parts.peers:
            self.preference = RelevancePreference(
                intent_dim, item_dim, num_levels, own=parts.own, peers=parts.peers,
                statistics_dim=len(self.statistics) * (2 * num_levels + 4), num_counts=4, gate=parts.gate, dim=parts.dim,
                num_heads=parts.heads,
            )  # fmt: skip
            if parts.incentive != "none":
                values = num_levels if parts.incentive == "per_level" and mixture else 1
                self.incentive = RelevanceIncentive(relevance_dim, parts.dim, values)
        if parts.taste:
            self.taste = Taste(item_dim, parts.vocab_size, dim=parts.taste, num_levels=num_levels)
        self.num_features = 2 * (self.taste is not None)
        self.reads_counters = parts.own or parts.peers

    def forward(
        self, batch: SearchInputs, looked_up: LookedUp, slots: CandidateSlots, relevance: Tensor, log_pi: Tensor, level: Tensor
    ) -> Personal:
        """Args: relevance: (C, relevance_dim); log_pi: (C, K) predicted; level: (C,) known, 0: not."""
        to_request = batch.candidate_request
        shift = relevance.new_zeros(relevance.shape[0], log_pi.shape[1] if self.mixture else 1)
        levels = {who: self._level_posterior(batch, who) for who in self.levels}
        for posterior in levels.values():
            by_level = posterior.mean[to_request]  # (C, K + 1)
            shift = shift + (by_level[:, 1:] if self.mixture else by_level.gather(1, level.unsqueeze(1)))
        items = looked_up.rows(self.item_features, to_request)
        own = looked_up.events(self.history_by_item, batch.history_level.shape[1])
        taste = self._taste(batch, items, own, slots) if self.taste is not None else None
        features = [relevance.new_zeros(relevance.shape[0], 0)]
        if taste is not None:
            shift = shift + taste.mean.unsqueeze(1)
            features += [taste.mean.unsqueeze(1), taste.variance.unsqueeze(1)]
        preference = self._preference(batch, looked_up, slots, items, own) if self.preference is not None else None
        incentive = None
        if self.incentive is not None and preference is not None:
            incentive = self.incentive(relevance, preference.vector)
            shift = shift + incentive.tau
        return Personal(shift, torch.cat(features, dim=1), preference, incentive, levels, taste)

    def _level_posterior(self, batch: SearchInputs, who: str) -> Posterior:
        return self.levels[who](getattr(batch, f"{who}_examined"), getattr(batch, f"{who}_clicked"))

    def _taste(self, batch: SearchInputs, items: Tensor, own: Tensor | None, slots: CandidateSlots) -> Posterior:
        assert self.taste is not None
        titles = self.taste.title(batch.title_tokens)[batch.title_index]
        past = self.taste.title(batch.history_title_tokens)[batch.history_title_index]  # (R, L, dim)
        events = self.taste.items(past, own) if own is not None else past
        return self.taste(
            self.taste.items(titles, items), slots, events, batch.history_lengths, batch.history_level, batch.history_click,
            batch.history_position,
        )  # fmt: skip

    def _preference(
        self, batch: SearchInputs, looked_up: LookedUp, slots: CandidateSlots, items: Tensor, own: Tensor | None
    ) -> Preference:
        assert self.preference is not None
        L, M = batch.history_level.shape[1], batch.peer_level.shape[1]
        what = (batch.history_lengths, batch.history_level, batch.history_click, batch.history_position, batch.history_age)
        intents = looked_up.events(self.history_by_intent, L) if self.preference.intent is not None else None
        intent = [looked_up.request[name] for name in self.history_by_intent.values()]
        peers = looked_up.events(self.peers_by_item, M) if self.preference.peers is not None else None
        by_peers = (batch.peer_lengths, batch.peer_level, batch.peer_click, batch.peer_position, batch.peer_age)
        statistics = [
            module(*(getattr(batch, f"{who}_{kind}") for kind in ("shown", "clicked", "examined")))
            for who, module in self.statistics.items()
        ]
        counts = torch.stack([batch.user_events, batch.user_query_events, batch.query_events, batch.peer_lengths.float()], dim=1)
        return self.preference(
            torch.cat(intent, dim=1) if intent else None,
            Events(intents, *what) if intents is not None else None,
            items,
            Events(own, *what) if own is not None else None,
            Events(peers, *by_peers) if peers is not None else None,
            slots,
            batch.candidate_request,
            torch.cat(statistics, dim=1) if statistics else None,
            counts.log1p() / 4,
        )
