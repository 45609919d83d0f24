"""The counters of a sample row, kept event by event: what serving knows of a user, a query, its group and the items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prectr_torchrec.config.reads import COUNTED
from prectr_torchrec.data.prepare.events import level_shares
from prectr_torchrec.data.prepare.examination import position_weights, weights_at
from prectr_torchrec.system.errors import nearest

_KEYS = {"user": 1, "query": 1, "group": 1, "user_query": 2, "user_group": 2, "item": 1}
"""What is counted by, and of how many ids that is."""
Key = tuple[int, ...]


class PreferenceStatistics:
    """Shown, clicked and examined events, and those with further labels, by level, exactly as `prepare` counts them.

    The samples count what is known strictly before the request: look up all requests of a moment before adding its events. A
    click that becomes known after its impression, or another label, is added by itself, when it is known. An event and a look-up
    take constant time.

    Args:
        num_levels: K.
        examination: of positions 1, 2, ..., as in `prepared.json`.
        labels: those of `data.labels` beside the click, in that order.

    Example::

        statistics = PreferenceStatistics(num_levels=4, examination=manifest["examination"], labels=["cart"])
        counters = statistics.look_up(user_id=7, query_id=3, group_id=0) | statistics.item(candidates)
        statistics.add(user_id=7, query_id=3, group_id=0, item_id=candidates[0], level=4, position=1, click=0)
        statistics.add_label("click", user_id=7, query_id=3, group_id=0, item_id=candidates[0], level=4)  # an hour later
    """

    def __init__(self, num_levels: int, examination: Sequence[float], labels: Sequence[str] = ()) -> None:
        self.num_levels, self.examination, self.labels = num_levels, list(examination), list(labels)
        self._weights = position_weights(examination)
        self._counted = (*COUNTED, *(f"{label}s" for label in labels))
        self._none = np.zeros((len(self._counted), num_levels + 1))
        self._counts: dict[str, dict[Key, NDArray[np.float64]]] = {name: {} for name in _KEYS}

    def add(
        self, user_id: int, query_id: int, group_id: int, item_id: int, level: int, position: int, click: int, predicted: int = 0
    ) -> None:
        """Counts a shown item, and its click if that is known by now.

        Args:
            user_id: 0: nobody known, whose events are others' to everybody.
            group_id: 0: the query has none.
            level: in 0..K, 0: without a grade.
            position: from 1; 0: not logged.
            click: 0 or 1.
            predicted: a distribution over the levels as of `pack_levels`, which a level replaces; 0: none.

        Raises:
            ValueError: a level, position or click that cannot be.
        """
        if not (0 <= level <= self.num_levels and position >= 0 and click in (0, 1)):
            raise ValueError(
                f"level {level}, position {position}, click {click}: expected a level in 0..{self.num_levels}, "
                "a position from 0 and a click of 0 or 1"
            )
        weight = float(weights_at(self._weights, np.array(position)))
        self._add({"shown": 1, "clicked": click, "examined": weight}, level, predicted, (user_id, query_id, group_id, item_id))

    def add_label(
        self, label: str, user_id: int, query_id: int, group_id: int, item_id: int, level: int, predicted: int = 0
    ) -> None:
        """Counts what became known of an item that was added when it was shown.

        Args:
            label: `click`, of an item that was added as not clicked, or one of the labels. What it comes after is not counted
                with it.
            user_id, query_id, group_id, item_id, level, predicted: those of its impression.

        Raises:
            ValueError: a label or level that cannot be.
        """
        if label not in ("click", *self.labels):
            raise ValueError(f"{label!r} is no label{nearest(label, ['click', *self.labels])}")
        if not 0 <= level <= self.num_levels:
            raise ValueError(f"level {level}: expected a level in 0..{self.num_levels}")
        self._add({"clicked" if label == "click" else f"{label}s": 1}, level, predicted, (user_id, query_id, group_id, item_id))

    def _add(self, counts: Mapping[str, float], level: int, predicted: int, ids: tuple[int, int, int, int]) -> None:
        """Adds to what is counted."""
        user_id, _, group_id, _ = ids
        share = level_shares(np.array([level]), np.array([predicted]), self.num_levels)[0]  # (K + 1,)
        event = np.outer([counts.get(what, 0) for what in self._counted], share)
        for name, key in _keys(*ids).items():
            if (group_id or not name.endswith("group")) and (user_id or not name.startswith("user")):
                self._counts[name].setdefault(key, np.zeros_like(self._none))[...] += event

    def look_up(self, user_id: int, query_id: int, group_id: int) -> dict[str, NDArray[np.float32]]:
        """`user_*`, `query_*` and `group_*`, each (K + 1,), as sample columns; own events are in `user_*` alone."""
        found = {name: self._counts[name].get(key, self._none) for name, key in _keys(user_id, query_id, group_id, 0).items()}
        counts = {"user": found["user"], **{who: found[who] - found[f"user_{who}"] for who in ("query", "group")}}
        return {
            f"{who}_{what}": row.astype(np.float32)
            for who in counts
            for what, row in zip(self._counted, counts[who], strict=True)
        }

    def item(self, item_ids: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """`candidate_shown`, `candidate_clicked`, ... of some items, each (items,)."""
        counts = np.array([self._counts["item"].get((int(item),), self._none).sum(axis=1) for item in item_ids])
        columns = counts.reshape(-1, len(self._counted)).T.astype(np.float32)
        return {f"candidate_{what}": column for what, column in zip(self._counted, columns, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """`<counted by>.keys` (N, ids) int64 and `.counts` (N, counted, K + 1) float64, and what they were counted with."""
        state: dict[str, Any] = {"num_levels": self.num_levels, "examination": self.examination, "labels": self.labels}
        for name, ids in _KEYS.items():
            counts = self._counts[name]
            state[f"{name}.keys"] = torch.tensor(list(counts), dtype=torch.int64).reshape(-1, ids)
            state[f"{name}.counts"] = torch.from_numpy(np.array(list(counts.values())).reshape(-1, *self._none.shape))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the counters of a state.

        Raises:
            ValueError: it was counted with other levels, another examination or other labels.
        """
        for name in ("num_levels", "examination", "labels"):
            if state.get(name, []) != getattr(self, name):
                raise ValueError(
                    f"counters with {name} {state.get(name, [])}, here it is {getattr(self, name)}; count the events anew"
                )
        for name in _KEYS:
            keys, counts = state[f"{name}.keys"].tolist(), state[f"{name}.counts"].numpy().copy()
            self._counts[name] = {tuple(key): count for key, count in zip(keys, counts, strict=True)}


def _keys(user: int, query: int, group: int, item: int) -> dict[str, Key]:
    return dict(zip(_KEYS, ((user,), (query,), (group,), (user, query), (user, group), (item,)), strict=True))
