"""Labels beside the click: their values in the samples, what is mended, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prepared_logs import SMALL, TEXT, labelled_rows, run
from raw_logs import Raw, random_log, read_split, recast, write_log

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.prepare.summary import format_summary
from prectr_torchrec.data.raw.source import RawLogError

LABELS: dict[str, Any] = {"labels": {"cart": {}, "order": {"after": "cart"}}}
TIMED: dict[str, Any] = {
    "labels": {"cart": {"time": "carted"}, "order": {"after": "cart", "time": "ordered"}, "click": {"time": "clicked"}}
}


TIMES = {"click": "clicked", "cart": "carted", "order": "ordered"}


def random_labels(seed: int = 0) -> Raw:
    """A log in which half of the clicked are put into a cart and half of these ordered; some of it is not known."""
    raw, rng = random_log(seed), np.random.default_rng(seed)
    for event in raw["impressions"]:
        event["cart"] = int(event["click"] and rng.random() < 0.5)
        event["order"] = int(event["cart"] and rng.random() < 0.5)
        if rng.random() < 0.1:
            event["cart"] = event["order"] = None
    return raw


def times(raw: Raw) -> Raw:
    """The log with a time of each label: a second after the one before it."""
    for event in raw["impressions"]:
        for delay, (name, time) in enumerate(TIMES.items(), 1):
            event[time] = event["timestamp"] + delay if event[name] else None
    return raw


def values(rows: list[dict[str, Any]], name: str) -> dict[tuple[int, int], int | None]:
    return {
        (row["request_id"], item): value
        for row in rows
        for item, value in zip(row["candidate_item_id"], row[f"candidate_{name}"], strict=True)
    }


def test_labels_are_those_of_the_log_and_pairs_without_a_request_have_none(tmp_path: Path) -> None:
    raw = random_labels()
    data = DataConfig.model_validate(SMALL | LABELS)
    manifest = run(raw, tmp_path, data)
    for name in ("click", "cart", "order"):
        assert values(labelled_rows(tmp_path), name) == {(e["request_id"], e["item_id"]): e[name] for e in raw["impressions"]}
        assert set(values(read_split(tmp_path / "out", "judgments"), name).values()) == {None}
    assert manifest["mended"] == {}
    carts = [e["cart"] for e in raw["impressions"] if e["timestamp"] >= 30]
    assert (
        manifest["splits"]["test"]["labels"]["cart"] == carts.count(1) and manifest["splits"]["judgments"]["labels"]["cart"] == 0
    )
    lines = format_summary(manifest, data)
    assert next(line for line in lines if line.startswith("split ")).split()[-2:] == ["cart", "order"]
    assert next(line for line in lines if line.startswith("test ")).split()[-2] == str(carts.count(1))


@pytest.mark.parametrize("settings", [LABELS, TIMED], ids=["plain", "times"])
def test_what_comes_after_implies_what_comes_before(tmp_path: Path, settings: dict[str, Any]) -> None:
    raw = times(random_labels())
    first, second = raw["impressions"][:2]
    first |= {"click": 0, "cart": 0, "order": 1, "clicked": None, "carted": None, "ordered": first["timestamp"] + 9}
    second |= {"click": 0, "cart": 1, "order": 0, "clicked": None, "carted": second["timestamp"] + 2, "ordered": None}
    manifest = run(raw, tmp_path, DataConfig.model_validate(SMALL | settings))
    found = [values(labelled_rows(tmp_path), name) for name in ("click", "cart", "order")]
    assert [label[first["request_id"], first["item_id"]] for label in found] == [1, 1, 1]
    assert [label[second["request_id"], second["item_id"]] for label in found] == [1, 1, 0]
    assert manifest["mended"] == {
        "impressions with cart and without click, which it comes after: taken for both": 1,
        "impressions with order and without cart, which it comes after: taken for both": 1,
    }


def test_an_implied_click_is_known_when_what_implies_it_is(tmp_path: Path) -> None:
    shown = random_log(0)["impressions"][0] | {"request_id": 0, "timestamp": 100, "click": 0, "cart": 0, "order": 1}
    shown |= {"clicked": None, "carted": None, "ordered": 200}
    nothing = shown | {"order": 0, "ordered": None}
    later = [nothing | {"request_id": number, "timestamp": time} for number, time in enumerate((200, 201, 202), 1)]
    raw = random_log(0) | {"impressions": [shown, *later]}
    data = DataConfig.model_validate({"split": {"validation_from": 201, "test_from": 202}} | TIMED)
    run(raw, tmp_path, data)
    assert [row["history_click"][:1] for row in labelled_rows(tmp_path)] == [[], [0], [1], [1]]


def test_what_has_no_time_of_its_own_is_counted_and_known_after_the_delay(tmp_path: Path) -> None:
    raw = times(random_labels())
    clicked = next(event for event in raw["impressions"] if event["click"] and not event["cart"])
    clicked["clicked"] = None
    manifest = run(raw, tmp_path, DataConfig.model_validate(SMALL | TIMED | {"feedback_delay": 5}))
    assert manifest["mended"] == {
        "impressions with click and without its time: known data.feedback_delay after they were shown": 1
    }


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "before it was shown": (
        {"timestamp": 30, "click": 1, "clicked": 29},
        r"column 'clicked', row 1: 29, and timestamp is 30; it cannot have happened before it was shown: expected the time of",
    ),
    "of what did not happen": (
        {"timestamp": 30, "click": 0, "clicked": 31},
        r"column 'clicked', row 1: 31, and click is 0; what did not happen has no time: expected the time of click, or null",
    ),
    "negative": ({"click": 1, "clicked": -1}, r"column 'clicked', row 1: -1; expected seconds, not negative .*, or null"),
    "two": ({"cart": 2}, r"column 'cart', row 1: 2; expected 0, 1, or null where it is not known"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_wrong_label_is_named_by_file_and_row(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    raw = times(random_labels())
    first = raw["impressions"][0]
    first |= {"request_id": 9999, "cart": 0, "order": 0, "carted": None, "ordered": None} | change
    with pytest.raises(RawLogError, match=r"impressions\.parquet: " + message):
        run(raw, tmp_path, DataConfig.model_validate(SMALL | TIMED))


def test_a_label_that_the_log_lacks_is_named_with_its_table(tmp_path: Path) -> None:
    with pytest.raises(RawLogError, match=re.escape("impressions.parquet: column 'cart' is missing")):
        run(random_log(), tmp_path, DataConfig.model_validate(SMALL | LABELS))


def windowed(raw: Raw, name: str, window: dict[str, int], data: DataConfig) -> dict[tuple[int, int], int | None]:
    """A label by the plain rule: in train it waits until its window is over, and in all splits it counts within it."""
    chain = ["click", "cart", "order"]
    found: dict[tuple[int, int], int | None] = {}
    for event in raw["impressions"]:
        before = chain[: chain.index(name) + 1]
        within = all(event[b] and event[TIMES[b]] - event["timestamp"] <= window[b] for b in before)
        train, over = event["timestamp"] < 20, event["timestamp"] + window[name] < 20
        value = int(bool(within)) if event[name] is not None else None
        found[event["request_id"], event["item_id"]] = None if train and not over else value
    return found


@pytest.mark.parametrize(("all_labels", "order"), [(2, None), (1, 5), (100, 5)])
def test_labels_count_within_their_window_and_train_waits_until_it_is_over(
    tmp_path: Path, all_labels: int, order: int | None
) -> None:
    raw = times(random_labels(3))
    settings = TIMED | {"label_window": all_labels, "labels": {**TIMED["labels"]}}
    settings["labels"]["order"] = {**settings["labels"]["order"], "window": order}
    data = DataConfig.model_validate(SMALL | settings)
    run(raw, tmp_path, data)
    windows = {"click": all_labels, "cart": all_labels, "order": order or all_labels}
    for name in windows:
        assert values(labelled_rows(tmp_path), name) == windowed(raw, name, windows, data)
    without = DataConfig.model_validate(SMALL | TIMED)
    run(raw, tmp_path / "without", without)
    changed = {"candidate_click", "candidate_cart", "candidate_order"}
    for row, other in zip(labelled_rows(tmp_path), labelled_rows(tmp_path / "without"), strict=True):
        assert {name: row[name] for name in row.keys() - changed} == {name: other[name] for name in row.keys() - changed}


def test_what_has_no_time_waits_for_the_delay_alone(tmp_path: Path) -> None:
    raw = times(random_labels(3))
    labels = {"labels": {"cart": {"time": "carted"}, "order": {"after": "cart", "time": "ordered"}}}
    run(raw, tmp_path, DataConfig.model_validate(SMALL | labels | {"label_window": 10, "feedback_delay": 3}))
    clicks = values(read_split(tmp_path / "out", "train"), "click")
    given = {(e["request_id"], e["item_id"]): e for e in raw["impressions"]}
    assert clicks == {key: given[key]["click"] if given[key]["timestamp"] + 3 < 20 else None for key in clicks}
    carts = values(read_split(tmp_path / "out", "train"), "cart")
    assert all((value is None) == (given[key]["timestamp"] >= 10 or given[key]["cart"] is None) for key, value in carts.items())


@pytest.mark.parametrize("written", ["csv", "timestamp", "null"])
def test_times_are_read_as_timestamps_are(tmp_path: Path, written: str) -> None:
    raw = times(random_labels(1))
    if written == "null":
        for event in raw["impressions"]:
            event |= {"order": 0, "ordered": None}
    data = DataConfig.model_validate(SMALL | TIMED | {"label_window": 4})
    run(raw, tmp_path / "plain", data)
    suffix = "csv" if written == "csv" else "parquet"
    folder = write_log(raw, tmp_path / "other" / "raw", suffix=suffix)
    if written == "timestamp":
        for column in ("timestamp", *TIMES.values()):
            recast(folder / "impressions.parquet", column, lambda c: c.cast(pa.timestamp("s")).cast(pa.timestamp("ms")))
    if written == "null":
        recast(folder / "impressions.parquet", "ordered", lambda c: pa.nulls(len(c)))
    log = {name: {"path": f"{name}.{suffix}"} for name in ("impressions", "items", "queries", "judgments")}
    prepare(DataConfig.model_validate(data.model_dump() | {"raw": log}), TEXT, folder, tmp_path / "other" / "out", progress=False)
    assert labelled_rows(tmp_path / "other") == labelled_rows(tmp_path / "plain")
