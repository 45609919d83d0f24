"""The summary of a preparation says what can be counted in the raw log."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_logs import random_log, write_log

from prectr_torchrec.config.data import DataConfig, Split
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.prepare.summary import format_summary

DATA = DataConfig(split=Split(validation_from=20, test_from=30))


def test_the_figures_are_those_of_the_log(tmp_path: Path) -> None:
    raw = random_log(1)
    for event in raw["impressions"]:
        event["user_id"] = event["user_id"] if event["request_id"] % 3 else None
    raw["impressions"].append(raw["impressions"][-1] | {"request_id": 9999, "item_id": 9})
    raw["judgments"].append(raw["judgments"][0])
    manifest = prepare(DATA, TextConfig(vocab_size=300), write_log(raw, tmp_path / "raw"), tmp_path / "out", progress=False)
    events, summary = raw["impressions"][:-1], manifest["summary"]
    assert summary["tables"] == {
        "impressions": {"in": len(events) + 1, "out": len(events)},
        "items": {"in": 20, "out": 20},
        "queries": {"in": 6, "out": 6},
        "judgments": {"in": len(raw["judgments"]), "out": len(raw["judgments"]) - 1},
    }
    assert summary["empty"]["items.title"] == pytest.approx(1 / 20)
    assert summary["empty"]["items.category_id"] == pytest.approx(7 / 20)
    for position in range(1, 5):
        shown = [event["click"] for event in events if event["position"] == position]
        assert summary["positions"][str(position)] == [len(shown), sum(shown)]
    graded = {(row["query_id"], row["item_id"]) for row in raw["judgments"]}
    test, split = [event for event in events if event["timestamp"] >= 30], manifest["splits"]["test"]
    assert split["graded"] == sum((event["query_id"], event["item_id"]) in graded for event in test)
    assert split["known_users"] == len({event["request_id"] for event in test if event["request_id"] % 3})

    lines = format_summary(manifest, DATA)
    row = next(line for line in lines if line.startswith("test "))
    share, of_known = split["graded"] / split["candidates"], split["known_users"] / split["requests"]
    assert f"{100 * share:.1f} %" in row and f"{100 * of_known:.1f} %" in row and "1970-01-01 00:00" in row
    assert "dropped: 1 impressions of an unknown item" in lines and "dropped: 1 judgments given twice" in lines
    assert next(line for line in lines if line.startswith("judgments ")).split() == [
        "judgments",
        str(len(raw["judgments"])),
        str(len(raw["judgments"]) - 1),
    ]


def test_an_attribute_that_is_called_as_an_id_is_still_an_attribute(tmp_path: Path) -> None:
    raw = random_log(1)
    raw["items"] = [item | {"user_id": number % 2} for number, item in enumerate(raw["items"])]
    data = DATA.model_copy(update={"item_attributes": [*DATA.item_attributes, "user_id"]})
    manifest = prepare(data, TextConfig(vocab_size=300), write_log(raw, tmp_path / "raw"), tmp_path / "out", progress=False)
    note = "note: 10 rows of items.user_id are 0, which stands for none; if 0 is an id, set data.zero_id: id"
    assert note in format_summary(manifest, data)
