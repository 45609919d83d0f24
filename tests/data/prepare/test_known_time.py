"""From when on a click is known, to the samples, to the slow reference and to the counters that serving keeps."""

from __future__ import annotations

import heapq
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared_logs import SMALL, labelled_rows, run
from raw_logs import Raw, delay_labels, known_from, random_log, random_predictions, reference_rows, write_scores

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.serving.counters import PreferenceStatistics

CLICKS: dict[str, Any] = {"labels": {"click": {"time": "click_time"}}}
LABELS = ("click", "cart", "order")
ALL: dict[str, Any] = {
    "labels": {"click": {"time": "click_time"}, "cart": {"time": "cart_time"}, "order": {"after": "cart", "time": "order_time"}}
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "settings",
    [
        CLICKS,
        {"feedback_delay": 7},
        CLICKS | {"feedback_delay": 3, "history_events": "clicked"},
        CLICKS | {"peer_minimum": 100, "peer_length": 30},
        ALL | {"feedback_delay": 2},
        ALL | {"history_events": "cart"},
        {"labels": {"cart": {}, "order": {"after": "cart"}}, "history_events": "order"},
        {"labels": {"cart": {}, "order": {"after": "cart"}}},
        ALL | {"peer_events": "cart", "history_events": "order", "feedback_delay": 1},
        {"peer_events": "clicked", "peer_minimum": 5},
        CLICKS | {"peer_events": "clicked", "peer_minimum": 5},
    ],
    ids=[
        "times",
        "delay",
        "clicked histories",
        "groups",
        "labels",
        "carts in histories",
        "orders in histories",
        "labels without times",
        "carts of peers",
        "clicks of peers",
        "clicks of peers with times",
    ],
)
def test_with_random_delays_every_field_equals_the_slow_reference(tmp_path: Path, seed: int, settings: dict[str, Any]) -> None:
    raw = delay_labels(random_log(seed, text_ids=seed % 2 == 1), 15, seed)
    data = DataConfig.model_validate(SMALL | settings)
    run(raw, tmp_path, data)
    for found, expected in zip(labelled_rows(tmp_path), reference_rows(raw, data), strict=True):
        assert found == expected


def an_hour_later() -> Raw:
    """A click an hour after its impression, and requests of another user and of the same one in between and after it."""
    raw = random_log(0)
    shown = raw["impressions"][0] | {"request_id": 0, "timestamp": 10_000, "user_id": 1, "click": 1, "click_time": 13_600}
    later = [
        shown | {"request_id": number, "timestamp": time, "user_id": user, "click": 0, "click_time": None}
        for number, (time, user) in enumerate([(10_001, 1), (10_002, 2), (13_600, 1), (13_601, 1), (13_602, 2)], 1)
    ]
    return raw | {"impressions": [shown, *later]}


def test_a_request_in_between_sees_the_impression_and_not_the_click(tmp_path: Path) -> None:
    raw = an_hour_later()
    data = DataConfig.model_validate({"split": {"validation_from": 13_601, "test_from": 13_602}} | CLICKS)
    run(raw, tmp_path, data)
    rows = {row["timestamp"]: row for row in labelled_rows(tmp_path)}
    for time, clicked in ((10_001, 0), (13_600, 0), (13_601, 1)):
        assert rows[time]["history_click"][0] == sum(rows[time]["user_clicked"]) == clicked
        assert rows[time]["candidate_clicked"] == [clicked] and sum(rows[time]["user_shown"]) >= 1
    for time, clicked in ((10_002, 0), (13_602, 1)):
        assert rows[time]["peer_click"][0] == sum(rows[time]["query_clicked"]) == clicked
    assert list(rows.values()) == reference_rows(raw, data)


def test_a_click_that_is_known_with_its_impression_counts_as_one_without_a_time(tmp_path: Path) -> None:
    raw = delay_labels(random_log(1), 0)
    run(raw, tmp_path / "times", DataConfig.model_validate(SMALL | CLICKS))
    run(raw, tmp_path / "none", DataConfig(**SMALL))
    rows = labelled_rows(tmp_path / "times")
    for row in rows:
        assert row.pop("candidate_known_click") == [click * row["timestamp"] for click in row["candidate_click"]]
    assert rows == labelled_rows(tmp_path / "none")


def test_examination_is_estimated_from_the_clicks_that_are_known_before_the_validation_part(tmp_path: Path) -> None:
    raw = delay_labels(random_log(18, requests=600), 5)
    data = DataConfig.model_validate(SMALL | CLICKS | {"examination": None})
    estimate = run(raw, tmp_path / "a", data)["examination"]
    assert len(estimate) > 1
    for event in raw["impressions"]:
        if event["click"] and known_from(event, data) >= 20:
            event["click"], event["click_time"] = 0, None
    assert run(raw, tmp_path / "b", data)["examination"] == estimate


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("predicted", [False, True])
def test_counters_that_are_told_of_clicks_when_they_are_known_are_those_of_the_samples(
    tmp_path: Path, seed: int, predicted: bool
) -> None:
    raw, data = delay_labels(random_log(seed), 15, seed), DataConfig.model_validate(SMALL | ALL | {"feedback_delay": 4})
    scores = [write_scores(random_predictions(raw, data), data, tmp_path / "scores")] if predicted else []
    run(raw, tmp_path, data, relevance=scores)
    known = {(label, e["request_id"], e["item_id"]): known_from(e, data, label) for e in raw["impressions"] for label in LABELS}
    statistics = PreferenceStatistics(data.levels.count, SMALL["examination"], LABELS[1:])
    waiting, order, late = [], count(), 0
    for time, now in groupby(labelled_rows(tmp_path), key=lambda row: row["timestamp"]):
        while waiting and waiting[0][0] < time:
            statistics.add_label(**heapq.heappop(waiting)[2])
        of_moment = list(now)
        for row in of_moment:
            found = statistics.look_up(row["user_id"], row["query_id"], row["group_id"])
            found |= statistics.item(row["candidate_item_id"])
            assert {name: counts.tolist() for name, counts in found.items()} == {name: row[name] for name in found}
            assert len(found) == 4 * 5
        for row in of_moment:
            levels = grade_levels(np.array(row["candidate_relevance"], np.float32), data.levels.boundaries)
            for place, item in enumerate(row["candidate_item_id"]):
                event = {name: row[name] for name in ("user_id", "query_id", "group_id")}
                event |= {"item_id": item, "level": int(levels[place]), "predicted": row["candidate_predicted"][place]}
                statistics.add(**event, position=row["candidate_position"][place], click=0)
                for label in (label for label in LABELS if row[f"candidate_{label}"][place]):
                    moment = known[label, row["request_id"], item]
                    heapq.heappush(waiting, (moment, next(order), {"label": label, **event}))
                    late += moment > time
    assert late > 30
