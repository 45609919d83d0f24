"""How the events of a log are sorted: for whom the past is asked for, and what of it is kept."""

from __future__ import annotations

from typing import Any

from prectr_torchrec.config.data import DataConfig

EVENT = ("timestamp", "user_id", "query", "item", "position", "click", "relevance", "predicted")
CLICK_KNOWN = "known_click"
"""When a click is known, of events whose clicks may be known later than that they were shown."""
_ORDERS: dict[str, dict[str, Any]] = {
    "by_user": {"columns": EVENT, "keys": ("user_id",), "counts": "level"},
    "by_query": {"columns": EVENT, "keys": ("query",), "runs": ("user_id",), "counts": "level"},
    "by_group": {"columns": (*EVENT, "group_id"), "keys": ("group_id",), "runs": ("user_id", "query"), "counts": "level"},
    "by_user_query": {"columns": ("timestamp", "user_id", "query"), "keys": ("user_id", "query"), "counts": "level"},
    "by_user_group": {"columns": ("timestamp", "user_id", "group_id"), "keys": ("user_id", "group_id"), "counts": "level"},
    "by_item": {"columns": ("timestamp", "item"), "keys": ("item",), "counts": "all"},
}
"""How the events are sorted, what of them is kept, which values may be skipped and what is counted."""
_GROUPED = ("by_group", "by_user_group")


def keys_of(data: DataConfig) -> dict[str, tuple[str, ...]]:
    """The orders that samples need, and whose past each is of; `clicked_*` are of clicks, by when these are known."""
    keys: dict[str, tuple[str, ...]] = {name: order["keys"] for name, order in _ORDERS.items()}
    clicked = {f"clicked_{name}": of for name, of in keys.items() if data.late or name == "by_user"}
    return keys | clicked


def order_arguments(data: DataConfig, name: str) -> dict[str, Any]:
    """Arguments of `write_order` for one of the orders."""
    order = _ORDERS[name.removeprefix("clicked_")]
    conditions = ["group_id <> 0"] if name.endswith(_GROUPED) else []
    known = (CLICK_KNOWN,) if data.late else ()
    if name in _ORDERS:
        columns = order["columns"] + (known if "click" in order["columns"] else ())
        order = {**order, "columns": columns}
    else:
        conditions.append("click = 1")
        columns = EVENT if name == "clicked_by_user" else order["keys"]
        order = {"columns": (*columns, *known), "keys": order["keys"]}
        order |= {"counts": _ORDERS[name.removeprefix("clicked_")]["counts"], "time": CLICK_KNOWN} if data.late else {}
    return {**order, "table": " WHERE ".join(["events", *[" AND ".join(conditions)] * bool(conditions)])}
