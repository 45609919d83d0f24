"""Labels from a table of actions, one row each, as User Behavior Insights writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared_logs import SMALL, labelled_rows, run
from raw_logs import Raw, Row, random_log, write_log

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.prepare.summary import format_summary
from prectr_torchrec.data.raw.source import RawLogError

TIMES = {"click": "clicked", "cart": "carted", "order": "ordered"}
COLUMNS: dict[str, Any] = {
    "labels": {"click": {"time": "clicked"}, "cart": {"time": "carted"}, "order": {"after": "cart", "time": "ordered"}}
}
ACTIONS: dict[str, Any] = {
    "labels": {"cart": {"action": "add to cart"}, "order": {"after": "cart"}},
    "raw": {"actions": {"path": "actions.parquet"}},
}


def timed_log(seed: int = 0, *, text_ids: bool = False) -> Raw:
    """A log whose clicks, carts and orders have times."""
    raw, rng = random_log(seed, text_ids=text_ids), np.random.default_rng(seed)
    for event in raw["impressions"]:
        time, happened = event["timestamp"], bool(event["click"])
        for name, column in TIMES.items():
            happened = happened and (name == "click" or rng.random() < 0.6)
            time += int(rng.integers(0, 9))
            event[name], event[column] = int(happened), time if happened else None
    return raw


def as_actions(raw: Raw, seed: int = 0) -> Raw:
    """The same log with actions in any order, some of them repeated later, and none of this in the impressions."""
    rng = np.random.default_rng(seed)
    actions: list[Row] = []
    for event in raw["impressions"]:
        for name, column in TIMES.items():
            del event[name]
            time = event.pop(column)
            times = [] if time is None else [time, time + 3][: rng.integers(1, 3)]
            called = "add to cart" if name == "cart" else name
            actions += [{"action": called, "timestamp": t, **{k: event[k] for k in ("request_id", "item_id")}} for t in times]
    return raw | {"actions": [actions[place] for place in rng.permutation(len(actions))]}


@pytest.mark.parametrize("text_ids", [False, True])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_actions_are_as_good_as_columns_with_times(tmp_path: Path, text_ids: bool, suffix: str) -> None:
    log = {name: {"path": f"{name}.{suffix}"} for name in ("impressions", "items", "queries", "judgments", "actions")}
    window = {"label_window": 6 if suffix == "parquet" else None}
    given = run(timed_log(text_ids=text_ids), tmp_path / "columns", DataConfig.model_validate(SMALL | COLUMNS | window))
    raw = as_actions(timed_log(text_ids=text_ids))
    found = run(raw, tmp_path / "actions", DataConfig.model_validate(SMALL | ACTIONS | window | {"raw": log}), suffix=suffix)
    assert labelled_rows(tmp_path / "actions") == labelled_rows(tmp_path / "columns")
    assert found["summary"]["tables"]["actions"] == {"in": len(raw["actions"]), "out": len(raw["actions"])}
    assert found["dropped"] == found["mended"] == given["mended"] == {}


def test_a_column_of_impressions_goes_before_actions_of_its_name(tmp_path: Path) -> None:
    raw = timed_log()
    clicks = [event["click"] for event in raw["impressions"]]
    raw = as_actions(raw)
    for event, click in zip(raw["impressions"], clicks, strict=True):
        event["click"] = click
    manifest = run(raw, tmp_path, DataConfig.model_validate(SMALL | ACTIONS))
    assert all(row["candidate_click"] for row in labelled_rows(tmp_path))
    ((dropped, count),) = manifest["dropped"].items()
    assert dropped.startswith("actions that are no label: 'click' (") and count > sum(clicks)


def test_what_is_left_out_is_counted_by_name(tmp_path: Path) -> None:
    raw = as_actions(timed_log())
    first = raw["actions"][0]
    raw["actions"] += [first | {"action": "hover"}, first | {"action": "hover", "item_id": None}, first | {"action": None}]
    raw["actions"] += [first | {"item_id": None}, first | {"request_id": 10**6}]
    data = DataConfig.model_validate(SMALL | ACTIONS)
    manifest = run(raw, tmp_path, data)
    assert manifest["dropped"] == {
        "actions that are no label: 'hover' (2), '' (1)": 3,
        "actions without a request or item": 1,
        "actions of an unknown impression": 1,
    }
    assert "dropped: 1 actions of an unknown impression" in format_summary(manifest, data)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "before its impression": (
        {"action": "order", "timestamp": 0},
        r"actions\.parquet: column 'timestamp', row 1: 'order' at 0, and its impression is at \d+; expected a time from",
    ),
    "a name that nothing has": (
        {"action": "orders"},
        r"actions\.parquet: no action is called 'order', which labels\.order is to be \(did you mean 'orders'\?\); there are "
        r"'orders' \(1\)\. Say what the log calls it: data\.labels\.order\.action",
    ),
    "no time": (
        {"timestamp": None},
        r"actions\.parquet: column 'timestamp', row 1: None; expected seconds",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_wrong_action_is_named_by_file_and_row(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    raw = as_actions(timed_log())
    shown = raw["impressions"][0]
    wrong = {"request_id": shown["request_id"], "item_id": shown["item_id"], "action": "order", "timestamp": 50} | change
    raw["actions"] = [wrong, *(action for action in raw["actions"] if action["action"] != "order")]
    shown_at = max(shown["timestamp"], 1)
    for event in raw["impressions"]:
        event["timestamp"] = shown_at if event["request_id"] == shown["request_id"] else event["timestamp"]
    with pytest.raises(RawLogError, match=message):
        run(raw, tmp_path, DataConfig.model_validate(SMALL | ACTIONS))


def test_actions_of_another_log_are_refused(tmp_path: Path) -> None:
    raw = as_actions(timed_log())
    for action in raw["actions"]:
        action["request_id"] += 10**6
    with pytest.raises(
        RawLogError, match=r"actions\.parquet: (\d+) of \1 actions are of a request_id and item_id that are not in"
    ):
        run(raw, tmp_path, DataConfig.model_validate(SMALL | ACTIONS))


def test_without_actions_the_column_is_missing(tmp_path: Path) -> None:
    raw = as_actions(timed_log())
    with pytest.raises(RawLogError, match=r"impressions\.parquet: column 'click' is missing"):
        run(raw, tmp_path / "a", DataConfig(**SMALL))
    write_log(raw, tmp_path / "b" / "raw")
    with pytest.raises(RawLogError, match=r"actions: there is no file .*ubi\.parquet; set data\.raw\.actions\.path"):
        run(raw, tmp_path / "b", DataConfig.model_validate(SMALL | ACTIONS | {"raw": {"actions": {"path": "ubi.parquet"}}}))
