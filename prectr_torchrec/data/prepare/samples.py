"""Rows of a sample file from sorted events: everything a request may know of its past."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.prepare.events import SKIP_NONE, EventOrder, Ints, expand, open_columns, texts_at
from prectr_torchrec.data.raw.loading import attribute_columns
from prectr_torchrec.data.reader.flat import UNLABELLED
from prectr_torchrec.data.schema import COUNTS, sample_schema, user_column


@dataclass(frozen=True)
class Log:
    """The sorted events and the catalogue, memory-mapped."""

    users: EventOrder
    clicks: EventOrder
    queries: EventOrder
    groups: EventOrder
    pairs: EventOrder
    user_groups: EventOrder
    items: EventOrder
    item: dict[str, NDArray[Any]]
    query: dict[str, NDArray[Any]]

    @classmethod
    def open(cls, folder: Path) -> Log:
        return cls(
            users=EventOrder.open(folder / "by_user", "user_id"),
            clicks=EventOrder.open(folder / "clicked_by_user", "user_id"),
            queries=EventOrder.open(folder / "by_query", "query"),
            groups=EventOrder.open(folder / "by_group", "group_id"),
            pairs=EventOrder.open(folder / "by_user_query", "user_id", "query"),
            user_groups=EventOrder.open(folder / "by_user_group", "user_id", "group_id"),
            items=EventOrder.open(folder / "by_item", "item"),
            item=open_columns(folder / "items"),
            query=open_columns(folder / "queries"),
        )


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


def build_rows(data: DataConfig, log: Log, requests: Requests, first: int, last: int) -> pa.Table:
    """The samples of requests first..last - 1, in `sample_schema`."""
    request = {name: np.asarray(column[first:last]) for name, column in requests.columns.items()}
    time, user, query = request["timestamp"], request["user_id"], request["query"]
    group = log.query["group_id"][query]
    schema = sample_schema(data)
    columns: dict[str, Any] = {name: request[name] for name in schema.names if name in request}
    columns |= {user_column(name): request[column] for name, column in attribute_columns(data.user_attributes).items()}
    columns |= {"query_id": log.query["query_id"][query], "group_id": group, "query": _strings(log.query, "query", query)}

    user_range = _known(user, log.users.before(time, user))
    pair_range = _known(user, log.pairs.before(time, user, query))
    query_range = log.queries.before(time, query)
    own = pair_range[1] - pair_range[0]
    others = query_range[1] - query_range[0] - own
    columns |= {"user_events": user_range[1] - user_range[0], "user_query_events": own, "query_events": others}
    group_range = log.groups.before(time, group)
    counts = {
        "user": log.users.counts(*user_range),
        "query": log.queries.counts(*query_range) - log.pairs.counts(*pair_range),
        "group": log.groups.counts(*group_range)
        - log.user_groups.counts(*_known(user, log.user_groups.before(time, user, group))),
    }
    columns |= {f"{who}_{what}": _fixed_lists(count) for who in counts for what, count in zip(COUNTS, counts[who], strict=True)}

    columns |= _history(data, log, time, user)
    columns |= _peers(data, log, time, user, query, query_range, group_range, others)
    columns |= _candidates(data, log, requests, first, last, time)
    return pa.Table.from_arrays([_array(columns[field.name], field.type) for field in schema], schema=schema)


EVENT = ("timestamp", "item", "query", "relevance", "predicted", "position", "click")
"""Columns of an event that a history or a peer list shows."""


def _known(user: Ints, past: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    """The ranges of a past that is the users' own: empty where nobody is known."""
    start, stop = past
    return start, np.where(user == 0, start, stop)


def _history(data: DataConfig, log: Log, time: Ints, user: Ints) -> dict[str, Any]:
    """The user's own latest events."""
    order = log.clicks if data.history_events == "clicked" else log.users
    start, stop = _known(user, order.before(time, user))
    start = np.maximum(start, stop - data.history_length)
    positions = expand(start, stop)
    events = {name: order.columns[name][positions] for name in EVENT}
    titles = _lists(_strings(log.item, "title", events["item"]), stop - start)
    return _event_lists(data, log, "history", events, time, stop - start) | {"history_title": titles}


def _peers(
    data: DataConfig,
    log: Log,
    time: Ints,
    user: Ints,
    query: Ints,
    query_range: tuple[Ints, Ints],
    group_range: tuple[Ints, Ints],
    others: Ints,
) -> dict[str, Any]:
    """Other users' latest events under the query; where these are few, other queries of the group fill up, before them."""
    width = data.peer_length
    limit = np.full(len(time), width)
    user = np.where(user == 0, SKIP_NONE, user)  # nobody known is no reason to leave anybody out
    under_query = log.queries.latest(*query_range, limit, width, {"user_id": user})
    wanted = np.where(others < data.peer_minimum, np.maximum(width - others, 0), 0)
    under_group = log.groups.latest(*group_range, wanted, width, {"user_id": user, "query": query})
    positions = np.concatenate([under_group[:, ::-1], under_query[:, ::-1]], axis=1)  # (R, 2M), oldest first
    from_group = np.broadcast_to(np.arange(2 * width) < width, positions.shape)
    there = positions >= 0
    flat, in_group = positions[there], from_group[there]
    events = {}
    for name in EVENT:
        events[name] = np.empty(len(flat), log.queries.columns[name].dtype)
        events[name][in_group] = log.groups.columns[name][flat[in_group]]
        events[name][~in_group] = log.queries.columns[name][flat[~in_group]]
    lengths = there.sum(axis=1)
    return _event_lists(data, log, "peer", events, time, lengths) | {"peer_in_group": _lists(in_group.astype(np.int8), lengths)}


def _event_lists(
    data: DataConfig, log: Log, prefix: str, events: dict[str, NDArray[Any]], time: Ints, lengths: Ints
) -> dict[str, pa.ListArray]:
    values = {
        "item_id": log.item["item_id"][events["item"]],
        "query_id": log.query["query_id"][events["query"]],
        **{name: log.item[column][events["item"]] for name, column in attribute_columns(data.item_attributes).items()},
        "relevance": pa.array(events["relevance"], from_pandas=True),
        "predicted": events["predicted"],
        "position": events["position"],
        "click": events["click"],
        "age": np.repeat(time, lengths) - events["timestamp"],
    }
    return {f"{prefix}_{name}": _lists(column, lengths) for name, column in values.items()}


def _candidates(data: DataConfig, log: Log, requests: Requests, first: int, last: int, time: Ints) -> dict[str, Any]:
    ends = np.concatenate([requests.ends[first - 1 : first] if first else [0], requests.ends[first:last]])
    lengths = np.diff(ends)
    candidate = {name: np.asarray(column[ends[0] : ends[-1]]) for name, column in requests.candidates.items()}
    item = candidate["item"]
    counts = log.items.counts(*log.items.before(np.repeat(time, lengths), item))
    values = {
        "item_id": log.item["item_id"][item],
        "title": _strings(log.item, "title", item),
        **{name: log.item[column][item] for name, column in attribute_columns(data.item_attributes).items()},
        "position": candidate["position"],
        "click": pa.array(candidate["click"], mask=candidate["click"] == UNLABELLED),
        "relevance": pa.array(candidate["relevance"], from_pandas=True),
        "predicted": candidate["predicted"],
        **{what: count[:, 0] for what, count in zip(COUNTS, counts, strict=True)},
    }
    return {"num_candidates": lengths} | {f"candidate_{name}": _lists(column, lengths) for name, column in values.items()}


def _strings(columns: dict[str, NDArray[Any]], name: str, rows: Ints) -> pa.Array:
    distinct, index = np.unique(rows, return_inverse=True)
    offsets, data = texts_at(columns, name, distinct)
    texts = pa.LargeStringArray.from_buffers(len(distinct), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data)))
    return texts.take(pa.array(index)).cast(pa.string())


def _lists(values: Any, lengths: Ints) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values if isinstance(values, pa.Array) else pa.array(np.asarray(values)))


def _fixed_lists(values: NDArray[np.float64]) -> pa.ListArray:
    return _lists(values.reshape(-1), np.full(len(values), values.shape[1]))


def _array(column: Any, kind: pa.DataType) -> pa.Array:
    array = column if isinstance(column, pa.Array) else pa.array(np.asarray(column))
    return array.cast(kind)
