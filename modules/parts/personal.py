"""The personal side of PRECTR-V2 as a part of a ranker: relevance preference, and the incentive that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..inputs import ComparedEvents, Inputs, Widths
from ..text.relevance import TextReading
from .base import Attention, Given, Part, PartOutput, ReportedPart
from .features import LOG_SCALE, PastCounts
from .incentive import Incentive, RelevanceIncentive
from .preference import GateKind, Preference, RelevancePreference
from .statistics import LevelStatistics

IncentiveKind = Literal["none", "shared", "per_level"]
"""No incentive, one value for all levels, or one for each."""


class PersonalFindings(NamedTuple):
    """What the personal side finds of each candidate."""

    preference: Preference
    """Vectors (C, dim) and weights (C, 3)."""
    incentive: Incentive | None
    """Shifts (C, 1) or (C, K) and gates (C, 3), where there is one."""


class Personal(Part):
    r"""Relevance preference as features, and the relevance incentive as a shift of the logits.

    With the preference :math:`r` of `RelevancePreference` and the relevance vector :math:`a`, the towers read :math:`r`, and
    the incentive :math:`\tau(a, r)` of `RelevanceIncentive` is added to the click logits: the personal side of PRECTR-V2
    (arXiv 2602.20676).

    Own events are compared with the request by the features that they share with requests, such as the query, and with
    candidates by those that they share with candidates; the peers' events by the latter.

    Args:
        widths: of the looked-up features.
        num_levels: K.
        own: preference from the own history.
        peers: of other users under the query and its group.
        gate: how own, peers and prior are weighed; see `PrecisionGate`.
        incentive: one value for all levels, one for each, or none.
        relevance_dim: width of the relevance vector.
        dim: width of the preference.
        num_heads: heads of its attention.

    Raises:
        ValueError: neither own nor peers, or these are compared with different features of candidates.

    Example::

        widths = Widths(request={"query_id": 6}, candidate={"item_id": 8}, sequences={"history": {"query_id": 6, "item_id": 8}})
        part = Personal(widths, num_levels=4, peers=False, relevance_dim=16)
        happened = {name: torch.tensor([[1, 0]]) for name in ("level", "click", "position", "age")}
        happened |= {"query_id": torch.randn(1, 2, 6), "item_id": torch.randn(1, 2, 8), "predicted": torch.zeros(1, 0, 4)}
        inputs = Inputs(
            request={"query_id": torch.randn(1, 6), "user_shown": torch.rand(1, 5), "user_clicked": torch.rand(1, 5)},
            candidate={"item_id": torch.randn(2, 8)},
            sequences={"history": Events(happened, lengths=torch.tensor([1]))},
            texts={},
            request_weight=torch.ones(1),
            candidate_request=torch.tensor([0, 0]),
            candidate_weight=torch.ones(2),
        )
        none = torch.zeros(2, 0)
        text = TextReading(Relevance(torch.randn(2, 16), torch.randn(2, 4).log_softmax(1)), none, none, none)
        output = part(inputs, text)
        assert output.features.shape == (2, 32) and output.shift.shape == (2, 4)
        assert output.own.preference.weights.shape == (2, 3)
    """

    reported: ClassVar[Mapping[str, ReportedPart]] = {
        "preference_weights": ReportedPart(
            "weights of own history, peers and prior in the relevance preference",
            width=3,
            names=("weight_own", "weight_peers", "weight_prior"),
        )
    }

    def __init__(
        self,
        widths: Widths,
        num_levels: int,
        *,
        own: bool = True,
        peers: bool = True,
        gate: GateKind = "precision",
        incentive: IncentiveKind = "per_level",
        relevance_dim: int,
        dim: int = 32,
        num_heads: int = 2,
    ) -> None:
        super().__init__()
        history, peer = (list(widths.sequences.get(name, ())) for name in ("history", "peer"))
        self.own, self.peers, self.num_features = own, peers, dim
        self.intent_names = [name for name in history if name not in widths.candidate]
        self.history_names = [name for name in history if name in widths.candidate]
        self.item_names = list(dict.fromkeys([*self.history_names, *peer]))
        self.peer_names = sorted(peer, key=self.item_names.index)
        sides = ["user"] * own + ["query", "group"] * peers
        if not sides:
            raise ValueError("a preference is of the own history, of peers, or of both")
        if own and peers and self.history_names and set(peer) != set(self.history_names):
            raise ValueError(f"history {self.history_names} and peers {peer} are compared with different features of candidates")
        statistics = {who: LevelStatistics(num_levels + 1) for who in sides}
        self.statistics = nn.ModuleDict(statistics)
        self.preference = RelevancePreference(
            sum(map(widths.compared, self.intent_names)),
            sum(map(widths.compared, self.item_names)),
            num_levels,
            own=own,
            peers=peers,
            statistics_dim=statistics[sides[0]].num_features,
            num_counts=PastCounts.num_features + 1,
            gate=gate,
            dim=dim,
            num_heads=num_heads,
        )
        self.incentive: RelevanceIncentive | None = None
        if incentive != "none":
            self.incentive = RelevanceIncentive(relevance_dim, dim, num_levels if incentive == "per_level" else 1)

    @classmethod
    def build(cls, given: Given, **settings: Any) -> Personal:
        """As of `Part`; without levels there is one incentive."""
        widths, own, peers = given.widths, settings["own"], settings["peers"]
        history, peer = (widths.sequences.get(name, {}) for name in ("history", "peer"))
        of_items = {name for name in history if name in widths.candidate}
        if own and not history:
            raise ValueError("own: true needs at least one history_* feature, such as history_item_id")
        if own and peer and not of_items:
            raise ValueError("own: beside peer_* features it needs a history_* feature of items, such as history_item_id")
        if peers and not peer:
            raise ValueError("peers: true needs at least one peer_* feature, such as peer_item_id")
        if missing := of_items ^ set(peer) if peers and of_items else None:
            names = ", ".join(f"candidate_{name}" for name in sorted(missing))
            raise ValueError(
                f"peers: peer_* and history_* features must be compared with the same candidate_* ones; {names} has one of them "
                "only"
            )
        if settings["incentive"] == "per_level" and not given.by_level:
            settings["incentive"] = "shared"
        return cls(widths, given.num_levels, relevance_dim=given.relevance_dim, **settings)

    def forward(self, inputs: Inputs, text: TextReading) -> PartOutput:
        """Features (C, dim), a shift (C, 1) or (C, K) where there is an incentive, and `PersonalFindings`."""
        preference = self._preference(inputs)
        report = {"preference_weights": preference.weights}
        if self.incentive is None:
            return PartOutput(preference.vector, None, report, PersonalFindings(preference, None))
        incentive = self.incentive(text.relevance.hidden, preference.vector, self.preference.gate.prior)
        return PartOutput(preference.vector, incentive.tau, report, PersonalFindings(preference, incentive))

    def attention(self, inputs: Inputs) -> dict[str, Attention]:
        """`intent`, of the request as a whole (P = 1), `category` and `peers`, as far as there are these."""
        module, found = self.preference, {}
        targets = inputs.slots.scatter(inputs.rows(self.item_names))
        if module.intent is not None and (past := self._past(inputs, "history", self.intent_names)) is not None:
            target = inputs.rows_of_requests(self.intent_names).unsqueeze(1)
            found["intent"] = Attention.with_prior("history", module.intent.weights(target, past))
        if module.category is not None and (past := self._past(inputs, "history", self.history_names)) is not None:
            found["category"] = Attention.with_prior("history", module.category.weights(targets, past))
        if module.peers is not None and (past := self._past(inputs, "peer", self.peer_names)) is not None:
            found["peers"] = Attention.with_prior("peer", module.peers.weights(targets, past))
        return found

    def _preference(self, inputs: Inputs) -> Preference:
        statistics: dict[str, Tensor] = {}
        for who, module in self.statistics.items():
            shown, clicked, examined = inputs.counters(who)  # torch.fx traces no starred argument
            statistics[who] = module(shown, clicked, examined)
        return self.preference(
            inputs.rows_of_requests(self.intent_names) if self.intent_names else None,
            self._past(inputs, "history", self.intent_names) if self.own else None,
            inputs.rows(self.item_names),
            self._past(inputs, "history", self.history_names) if self.own else None,
            self._past(inputs, "peer", self.peer_names) if self.peers else None,
            inputs.slots,
            inputs.candidate_request,
            statistics.get("user"),
            torch.cat([statistics["query"], statistics["group"]], dim=1) if self.peers else None,
            inputs.counts().log1p() / LOG_SCALE,
        )

    def _past(self, inputs: Inputs, sequence: str, names: list[str]) -> ComparedEvents | None:
        return inputs.sequences[sequence].compared_by(names) if names else None
