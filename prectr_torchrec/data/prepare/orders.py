"""How the events of a log are sorted: for whom the past is asked for, and what of it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prectr_torchrec.config.columns import LabelColumn
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.columns import CLICK_KNOWN, declared_of, stored_name
from prectr_torchrec.data.raw.versions import VERSION

EVENT = ("timestamp", "user_id", "query", "item", "position", "click", "relevance", "predicted")
CLICKED_BY_USER = "click_by_user"
_SHOWN: dict[str, dict[str, Any]] = {
    "by_user": {"columns": EVENT, "keys": ("user_id",), "counts": "level"},
    "by_query": {"columns": EVENT, "keys": ("query",), "runs": ("user_id",), "counts": "level"},
    "by_group": {"columns": (*EVENT, "group_id"), "keys": ("group_id",), "runs": ("user_id", "query"), "counts": "level"},
    "by_user_query": {"columns": ("timestamp", "user_id", "query"), "keys": ("user_id", "query"), "counts": "level"},
    "by_user_group": {"columns": ("timestamp", "user_id", "group_id"), "keys": ("user_id", "group_id"), "counts": "level"},
    "by_item": {"columns": ("timestamp", "item"), "keys": ("item",), "counts": "all"},
}
"""How the events are sorted, what of them is kept, which values may be skipped and what is counted."""
PEER_ORDERS = ("by_query", "by_group", "by_user_query")
"""What peers are found by."""
_GROUPED = ("by_group", "by_user_group")


def event_orders(data: DataConfig) -> dict[str, dict[str, Any]]:
    """The orders that samples need, with arguments of `write_order`.

    `by_*` are of all events by when they were shown, `click_by_*` of clicks and `<column>_by_*` of labels by when these are
    known. Where that is with the event, there is no order of clicks but the user's.
    """
    late = (CLICK_KNOWN,) if data.late else ()
    orders, event = {}, late + ((VERSION,) if data.valid_from else ())
    for name, shown in _SHOWN.items():
        columns = shown["columns"] + (event if "click" in shown["columns"] else ())
        orders[name] = {**shown, "columns": columns, "table": _table(name)}
    labels = [column.source.stored for column, _ in declared_of(data, LabelColumn)]
    for label in ["click"] * data.late + labels:
        orders |= {f"{label}_{name}": _of_label(data, name, label) for name in _SHOWN}
    orders[CLICKED_BY_USER] = _shown_of_label(data, "by_user", "click", event)
    for events, names in ((data.history_events, ("by_user",)), (data.peer_events, PEER_ORDERS)):
        if events != "shown":
            label = _column_of(data, events)
            orders |= {f"{label}_{name}": _shown_of_label(data, name, label, event) for name in names}
    return orders


def order_of(data: DataConfig, events: str, name: str) -> str:
    """The order of shown or clicked events, or of those with a label, that is sorted as `name` is."""
    return name if events == "shown" else f"{_column_of(data, events)}_{name}"


def _column_of(data: DataConfig, events: str) -> str:
    return "click" if events == "clicked" else stored_name(data, "impressions", events)


def _shown_of_label(data: DataConfig, name: str, label: str, event: Sequence[str]) -> dict[str, Any]:
    """The order of the events with a label, with what a history or a peer list shows."""
    made = _of_label(data, name, label)
    columns = dict.fromkeys([*EVENT, *event, *made["columns"]])
    return {**made, "columns": tuple(columns), "runs": _SHOWN[name].get("runs", ())}


def _of_label(data: DataConfig, name: str, label: str) -> dict[str, Any]:
    """The order of the events with a label, 1."""
    keys, time = _SHOWN[name]["keys"], f"known_{label}" if data.late else "timestamp"
    counts = _SHOWN[name]["counts"] if data.late or label != "click" else ""
    return {"columns": (time, *keys), "keys": keys, "counts": counts, "time": time, "table": _table(name, f"{label} = 1")}


def _table(name: str, *conditions: str) -> str:
    conditions = (*conditions, *["group_id <> 0"] * (name in _GROUPED))
    return " WHERE ".join(["events", *[" AND ".join(conditions)] * bool(conditions)])
