"""The sums of effects of a sample row, kept event by event: what serving knows of users, and of queries from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from prectr_torchrec.config.data import Effect
from prectr_torchrec.data.counted_kinds import sums_width
from prectr_torchrec.modules.rankers.mixed_effects import SUFFIX, MixedEffects
from prectr_torchrec.serving.ranker import Ranker
from prectr_torchrec.serving.request import Request
from prectr_torchrec.state.effects import Floats, Increments, event_sums, increments

_IDS = {"user": 1, "query": 1, "own": 2}
"""What is summed up by, and of how many ids that is; `own`: a user's under a query."""
Key = tuple[int, ...]


class ShownEffects(NamedTuple):
    """The n candidates of a request as events of mixed effects."""

    x: Floats
    """(n, D) what effects are multiplied with."""
    increments: Mapping[Effect, Increments]
    """What each adds to the sums of the user, and to those of the query."""


def shown_effects(ranker: Ranker, request: Request | pa.Table) -> ShownEffects:
    """What `EffectStatistics.add` wants of a request that was shown, with the positions at which its candidates were and the sums
    with which it was ranked.

    Args:
        ranker: with effects.
        request: a mapping, or requests as rows of samples.

    Raises:
        ValueError: no part of the ranker has effects.
        RequestError: as of `Ranker.score`.
    """
    mixed = next((part for part in ranker.model.modules() if isinstance(part, MixedEffects)), None)
    if mixed is None:
        raise ValueError(f"a ranker of kind {ranker.config.model.kind!r} has no mixed effects")
    inputs = ranker.inputs(request)
    with torch.inference_mode():
        own = mixed(inputs).own
    real = inputs.candidate_weight > 0
    x, logit, seen = (part[real].double().numpy() for part in (own.x, own.logit, own.examination))
    effects: tuple[Effect, ...] = ("user", "query")
    inferred = {who: own.by_effect[name][real].double().numpy() for who in effects if (name := who + SUFFIX) in mixed.posterior}
    slow = logit - sum(inferred.values(), np.zeros(len(logit)))
    # those of a query are subtracted from one another, and so linear around zero
    return ShownEffects(x, {who: increments(slow, seen, moved if who == "user" else 0.0) for who, moved in inferred.items()})


class EffectStatistics:
    """Sums over events, as `prectr effects` sums them up; constant time an event and a look-up.

    Samples sum up what is strictly older than the request: look up all requests of a moment before adding their events.

    Args:
        effects: `data.effects` of the run: whose sums, and of how many effects.

    Example::

        statistics = EffectStatistics(ranker.config.data.effects)
        request |= statistics.look_up(user_id=7, query_id=3)
        shown = shown_effects(ranker, request)
        statistics.add(user_id=7, query_id=3, shown=shown, place=0, click=1)
    """

    def __init__(self, effects: Mapping[Effect, int]) -> None:
        self.effects: dict[Effect, int] = dict(effects)
        self._sums: dict[str, dict[Key, Floats]] = {name: {} for name in _IDS}

    def add(self, user_id: int, query_id: int, shown: ShownEffects, place: int, click: int) -> None:
        """Adds a shown candidate.

        Args:
            user_id: 0: nobody known.
            query_id: 0: none.
            shown: the request that showed it.
            place: of the candidate among those of the request.
            click: 0 or 1.

        Raises:
            ValueError: a click that cannot be, or effects of another ranker.
        """
        if click not in (0, 1):
            raise ValueError(f"click {click}: expected 0 or 1")
        most = max(self.effects.values(), default=0)
        if shown.x.shape[1] < most or not self.effects.keys() <= shown.increments.keys():
            other = f"{', '.join(shown.increments) or 'none'} of {shown.x.shape[1]} numbers"
            raise ValueError(f"effects of {other}: expected {', '.join(self.effects)} of {most}; take those of this ranker")
        for who, dim in self.effects.items():
            row, found = shown.x[place : place + 1, :dim], shown.increments[who]
            surplus = found.surplus[place : place + 1] + click * found.weight[place]
            self._add(who, user_id, query_id, event_sums(row, surplus, found.information[place : place + 1])[0])

    def add_click(self, user_id: int, query_id: int, shown: ShownEffects, place: int) -> None:
        """Adds a click that becomes known later than its candidate was shown, which was added as not clicked.

        Args:
            user_id, query_id, shown, place: as of `add`, which checked them.
        """
        for who, dim in self.effects.items():
            weight = shown.increments[who].weight[place : place + 1]
            self._add(who, user_id, query_id, event_sums(shown.x[place : place + 1, :dim], weight, np.zeros(1))[0])

    def _add(self, who: Effect, user_id: int, query_id: int, added: Floats) -> None:
        for name, key in _keys(who, user_id, query_id).items():
            self._sums[name].setdefault(key, np.zeros(len(added)))[...] += added

    def look_up(self, user_id: int, query_id: int) -> dict[str, Any]:
        """`user_sums` and `query_sums`, of those that the ranker has, (D + D (D + 1) / 2,) each, as fields of a request."""
        found: dict[str, Any] = {}
        for who, dim in self.effects.items():
            none = np.zeros(sums_width(dim))
            keys = _keys(who, user_id, query_id)
            sums = self._sums[who].get(keys.get(who, ()), none) - self._sums["own"].get(keys.get("own", ()), none)
            found[f"{who}_sums"] = sums.astype(np.float32)
        return found

    def state_dict(self) -> dict[str, Any]:
        """`<summed up by>.keys` (N, ids) int64 and `.sums` (N, D + D (D + 1) / 2) float64 tensors, and the `effects`."""
        state: dict[str, Any] = {"effects": dict(self.effects)}
        for name, ids in _IDS.items():
            sums, width = self._sums[name], sums_width(self.effects.get("user" if name == "user" else "query", 0))
            state[f"{name}.keys"] = torch.tensor(list(sums), dtype=torch.int64).reshape(len(sums), ids)
            state[f"{name}.sums"] = torch.from_numpy(np.array(list(sums.values())).reshape(len(sums), width))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the sums of a state.

        Raises:
            ValueError: they are of other effects.
        """
        if state["effects"] != self.effects:
            raise ValueError(f"sums of effects {state['effects']}, here they are {self.effects}; add the events anew")
        for name in self._sums:
            keys, sums = state[f"{name}.keys"].tolist(), state[f"{name}.sums"].numpy().copy()
            self._sums[name] = {tuple(key): row for key, row in zip(keys, sums, strict=True)}


def _keys(who: Effect, user: int, query: int) -> dict[str, Key]:
    """What is summed up by; nothing where nobody is known."""
    if who == "user":
        return {"user": (user,)} if user else {}
    if not query:
        return {}
    return {"query": (query,), **({"own": (query, user)} if user else {})}
