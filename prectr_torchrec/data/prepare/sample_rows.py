"""Rows of a sample file from sorted events: everything a request may know of its past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.config.columns import LabelColumn
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.column_kinds import Age, Text
from prectr_torchrec.data.columns import CLICK_KNOWN, Column, attributes_trained, declared_of, sample_columns
from prectr_torchrec.data.list_kinds import Bags, Ids, Weights
from prectr_torchrec.data.prepare.events import SKIP_NONE, EventOrder, Ints, expand, lists_at, open_columns, slice_columns
from prectr_torchrec.data.prepare.orders import CLICKED_BY_USER, PEER_ORDERS, event_orders, order_of
from prectr_torchrec.data.prepare.trained import TrainedCounts
from prectr_torchrec.data.raw.versions import VERSION
from prectr_torchrec.data.schema import sample_schema


@dataclass(frozen=True)
class Log:
    """The sorted events and the catalogue, memory-mapped; the orders are those of `event_orders`.

    Attributes:
        labels: what the orders of labels beside the click begin with.
    """

    orders: dict[str, EventOrder]
    labels: tuple[str, ...]
    item: dict[str, NDArray[Any]]
    query: dict[str, NDArray[Any]]
    trained: TrainedCounts

    @classmethod
    def open(cls, folder: Path, data: DataConfig) -> Log:
        orders = {
            name: EventOrder.open(folder / name, *order["keys"], time=order.get("time", "timestamp"))
            for name, order in event_orders(data).items()
        }
        return cls(
            orders=orders,
            labels=tuple(column.source.stored for column, _ in declared_of(data, LabelColumn)),
            item=open_columns(folder / "items"),
            query=open_columns(folder / "queries"),
            trained=TrainedCounts(folder / "trained"),
        )

    def counts(self, name: str, past: tuple[Ints, Ints], time: Ints, *keys: NDArray[Any]) -> NDArray[np.float64]:
        """Shown, clicked and examined events and those with each label, by level, (3 + labels, R, levels).

        Args:
            name: of the order.
            past: (R,) each, what the order has of the keys before the moments.
            time: (R,) moments.
            keys: (R,) each.
        """

        def known(label: str) -> NDArray[np.float64]:
            order = self.orders[f"{label}_{name}"]
            start, stop = order.before(time, *keys)
            return order.counts(start, np.where(past[0] < past[1], stop, start))[0]

        counts = self.orders[name].counts(*past)
        if CLICK_KNOWN in self.orders[CLICKED_BY_USER].columns:
            counts[1] = known("click")
        return np.stack([*counts, *map(known, self.labels)]) if self.labels else counts


@dataclass(frozen=True)
class Requests:
    """Requests and their candidates, memory-mapped; `ends` are those of each request's candidates."""

    columns: dict[str, NDArray[Any]]
    candidates: dict[str, NDArray[Any]]
    ends: Ints

    @classmethod
    def open(cls, folder: Path) -> Requests:
        columns = open_columns(folder / "requests")
        return cls(columns, open_columns(folder / "candidates"), columns["candidate_ends"])

    def __len__(self) -> int:
        return len(self.ends)


Table = tuple[Mapping[str, Any], Ints | slice]
"""Columns by the log's names, and the rows of them that are wanted."""
_ALL = slice(None)


def build_rows(data: DataConfig, log: Log, requests: Requests, first: int, last: int) -> pa.Table:
    """The samples of requests first..last - 1, in `sample_schema`."""
    request = slice_columns(requests.columns, first, last)
    time, user, query = request["timestamp"], request["user_id"], request["query"]
    group = log.query["group_id"][query]

    user_range = _known(user, log.orders["by_user"].before(time, user))
    pair_range = _known(user, log.orders["by_user_query"].before(time, user, query))
    query_range = log.orders["by_query"].before(time, query)
    own = pair_range[1] - pair_range[0]
    others = query_range[1] - query_range[0] - own
    derived = {"group_id": group, "user_events": user_range[1] - user_range[0], "user_query_events": own, "query_events": others}
    group_range = log.orders["by_group"].before(time, group)
    own_group = _known(user, log.orders["by_user_group"].before(time, user, group))
    counts = {
        "user": log.counts("by_user", user_range, time, user),
        "query": log.counts("by_query", query_range, time, query) - log.counts("by_user_query", pair_range, time, user, query),
        "group": log.counts("by_group", group_range, time, group) - log.counts("by_user_group", own_group, time, user, group),
    }
    derived |= {f"{who}_{what}": count for who in counts for what, count in zip(data.counted, counts[who], strict=True)}

    history, peers = _history(data, log, time, user), _peers(data, log, time, user, query, (query_range, group_range, pair_range))
    candidates = _candidates(data, log, requests, first, last, time)
    derived["num_candidates"] = candidates.lengths
    derived |= {
        f"{who}_trained": log.trained.counts(who, key) for who, key in (("user", user), ("query", query), ("group", group))
    }
    tables: dict[str, dict[str, Table]] = {
        "request": {
            "requests": (request, _ALL),
            "users": (request, _ALL),
            "queries": (log.query, query),
            "derived": (derived, _ALL),
        }
    }
    lists = {"history": history, "peer": peers, "candidate": candidates}
    for family, rows in lists.items():
        tables[family] = {
            "items": (log.item, rows.events.get(VERSION, rows.events["item"])),
            "events": (rows.events, _ALL),
            "derived": (rows.derived, _ALL),
        }
        if "query" in rows.events:
            tables[family]["queries"] = (log.query, rows.events["query"])
    times = {"request": time, "candidate": np.repeat(time, candidates.lengths)}
    arrays = []
    for column in (column for column in sample_columns(data) if not column.gathered):
        values = _values(column, *tables[column.family][column.source.table], times.get(column.family))
        arrays.append(_lists(values, lists[column.family].lengths) if column.family in lists else values)
    return pa.Table.from_arrays(arrays, schema=sample_schema(data))


_EVENT = ("timestamp", "item", "query", "relevance", "predicted", "position", "click")


class Rows(NamedTuple):
    """The events or candidates in a list of each request.

    Attributes:
        lengths: (requests,) of the lists.
        events: column -> (events,), as the log has them.
        derived: column -> (events,), what is counted or compared.
    """

    lengths: Ints
    events: dict[str, NDArray[Any]]
    derived: dict[str, NDArray[Any]]


def _known(user: Ints, past: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    """The ranges of a past that is the users' own: empty where nobody is known."""
    start, stop = past
    return start, np.where(user == 0, start, stop)


def _history(data: DataConfig, log: Log, time: Ints, user: Ints) -> Rows:
    """The user's own latest events."""
    order = log.orders[order_of(data, data.history_events, "by_user")]
    start, stop = _known(user, order.before(time, user))
    start = np.maximum(start, stop - data.history_length)
    positions = expand(start, stop)
    events = {name: order.columns[name][positions] for name in _shown_columns(order)}
    return _past_rows(events, time, stop - start)


def _peers(
    data: DataConfig,
    log: Log,
    time: Ints,
    user: Ints,
    query: Ints,
    shown: tuple[tuple[Ints, Ints], ...],
) -> Rows:
    """Other users' latest events under the query; where these are few, other queries of the group fill up, before them.

    Args:
        shown: what `PEER_ORDERS` have of all that was shown.
    """
    queries, groups, pairs = (log.orders[order_of(data, data.peer_events, name)] for name in PEER_ORDERS)
    if data.peer_events != "shown":
        group = log.query["group_id"][query]
        pair_range = _known(user, pairs.before(time, user, query))
        shown = (queries.before(time, query), groups.before(time, group), pair_range)
    query_range, group_range, pair_range = shown
    others = (query_range[1] - query_range[0]) - (pair_range[1] - pair_range[0])
    width = data.peer_length
    limit = np.full(len(time), width)
    user = np.where(user == 0, SKIP_NONE, user)  # nobody known is no reason to leave anybody out
    under_query = queries.latest(*query_range, limit, width, {"user_id": user})
    wanted = np.where(others < data.peer_minimum, np.maximum(width - others, 0), 0)
    under_group = groups.latest(*group_range, wanted, width, {"user_id": user, "query": query})
    positions = np.concatenate([under_group[:, ::-1], under_query[:, ::-1]], axis=1)  # (R, 2M), oldest first
    from_group = np.broadcast_to(np.arange(2 * width) < width, positions.shape)
    there = positions >= 0
    flat, in_group = positions[there], from_group[there]
    events = {}
    for name in _shown_columns(queries):
        events[name] = np.empty(len(flat), queries.columns[name].dtype)
        events[name][in_group] = groups.columns[name][flat[in_group]]
        events[name][~in_group] = queries.columns[name][flat[~in_group]]
    return _past_rows(events, time, there.sum(axis=1), in_group=in_group.astype(np.int8))


def _shown_columns(order: EventOrder) -> list[str]:
    """Columns of an event that a history or a peer list shows, and what its click and its item's row depend on."""
    return [*_EVENT, *(name for name in (CLICK_KNOWN, VERSION) if name in order.columns)]


def _past_rows(events: dict[str, NDArray[Any]], time: Ints, lengths: Ints, **derived: NDArray[Any]) -> Rows:
    """Events as requests at some times know them: what is not yet known to be clicked is not clicked."""
    times = np.repeat(time, lengths)
    if (known := events.pop(CLICK_KNOWN, None)) is not None:
        events["click"] = events["click"] & (known < times)
    return Rows(lengths, events, {"age": times - events["timestamp"], **derived})


def _candidates(data: DataConfig, log: Log, requests: Requests, first: int, last: int, time: Ints) -> Rows:
    ends = np.concatenate([requests.ends[first - 1 : first] if first else [0], requests.ends[first:last]])
    lengths = np.diff(ends)
    candidate = slice_columns(requests.candidates, int(ends[0]), int(ends[-1]))
    item = candidate["item"]
    times = np.repeat(time, lengths)
    counts = log.counts("by_item", log.orders["by_item"].before(times, item), times, item)
    derived = {what: count[:, 0] for what, count in zip(data.counted, counts, strict=True)}
    derived["item_trained"] = log.trained.counts("item", item)
    row = candidate.get(VERSION, item)
    derived |= {name: log.trained.counts(stored, log.item[stored][row]) for name, stored in attributes_trained(data).items()}
    return Rows(lengths, candidate, derived)


def _values(column: Column, columns: Mapping[str, Any], rows: Ints | slice, time: Ints | None) -> pa.Array:
    """Args: time: (n,) of the request of each value, where ages may be asked for."""
    name = column.source.stored or column.source.column
    if isinstance(column.kind, Text):
        assert not isinstance(rows, slice)
        return column.kind.to_arrow(_strings(columns, name, rows))
    if isinstance(column.kind, Ids | Weights):
        offsets, values = lists_at(columns, name, np.arange(len(columns[f"{name}_ends"])) if isinstance(rows, slice) else rows)
        return column.kind.to_arrow(Bags(values, offsets))
    if isinstance(column.kind, Age):
        assert time is not None
        return column.kind.to_arrow(column.kind.since(columns[name][rows], time))
    return column.kind.to_arrow(columns[name][rows])


def _strings(columns: Mapping[str, NDArray[Any]], name: str, rows: Ints) -> pa.Array:
    distinct, index = np.unique(rows, return_inverse=True)
    offsets, data = lists_at(columns, name, distinct)
    texts = pa.LargeStringArray.from_buffers(len(distinct), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data)))
    return texts.take(pa.array(index))


def _lists(values: pa.Array, lengths: Ints) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)
