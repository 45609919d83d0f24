"""Ids and lists of ids of the log's own: from every table to the samples, from Parquet and from text with a separator."""

from __future__ import annotations

import math
import re
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared_logs import SMALL, labelled_rows, run
from raw_logs import Raw, as_id, random_log, read_split, write_table

from prectr_torchrec.config.data import DataConfig, RawLog, RawTable
from prectr_torchrec.data.hashing import hash_id
from prectr_torchrec.data.raw.source import RawLogError

COLUMNS: dict[str, Any] = {
    "users": {"city": "id", "interests": "ids"},
    "queries": {"kind": "id"},
    "requests": {"device": "id", "terms": "ids"},
    "items": {"tags": {"ids": {"weights": "tag_scores"}}},
    "impressions": {"badges": "ids", "engine": "id"},
}
DATA: dict[str, Any] = {**SMALL, "columns": COLUMNS}
KEYS = {"users": "user_id", "queries": "query_id", "items": "item_id"}
TAGS = ["red", "blue", "on sale", "new"]


def bag(rng: np.random.Generator) -> list[int] | None:
    return None if rng.random() < 0.1 else rng.integers(1, 9, rng.integers(0, 4)).tolist()


def log_with_ids(seed: int = 3) -> Raw:
    raw, rng = random_log(seed), np.random.default_rng(seed)
    users = sorted({row["user_id"] for row in raw["impressions"]})
    raw["users"] = [{"user_id": user, "city": int(rng.integers(5)) or None, "interests": bag(rng)} for user in users[1:]]
    for row in raw["queries"]:
        row["kind"] = str(rng.choice(["broad", "exact"]))
    for row in raw["items"]:
        row["tags"] = rng.choice(TAGS, rng.integers(0, 4)).tolist()
        row["tag_scores"] = [float(w) for w in rng.random(len(row["tags"])).astype(np.float32)]
    of_request = {row["request_id"]: (int(rng.integers(1, 4)), bag(rng)) for row in raw["impressions"]}
    for row in raw["impressions"]:
        row["device"], row["terms"] = of_request[row["request_id"]]
        row["badges"], row["engine"] = bag(rng), int(rng.integers(1, 3))
    return raw


def test_every_id_of_a_sample_is_the_log_s_own(tmp_path: Path) -> None:
    raw = log_with_ids()
    manifest = run(raw, tmp_path, DataConfig(**DATA))
    assert manifest["id_kinds"]["tags"] == "text" and manifest["id_kinds"]["badges"] == "integer"
    of = {table: {as_id(row[key]): row for row in raw[table]} for table, key in KEYS.items()}
    shown = {(row["request_id"], as_id(row["item_id"])): row for row in raw["impressions"]}
    for row in labelled_rows(tmp_path):
        events = [shown[row["request_id"], item] for item in row["candidate_item_id"]]
        user, items = of["users"].get(row["user_id"], {}), [of["items"][item] for item in row["candidate_item_id"]]
        assert row["user_city"] == (user.get("city") or 0) and row["user_interests"] == (user.get("interests") or [])
        assert row["query_kind"] == hash_id(of["queries"][row["query_id"]]["kind"])
        assert row["device"] == events[0]["device"] and row["terms"] == (events[0]["terms"] or [])
        assert row["candidate_tags"] == [[hash_id(tag) for tag in item["tags"]] for item in items]
        assert row["candidate_tag_scores"] == [item["tag_scores"] for item in items]
        assert row["candidate_badges"] == [event["badges"] or [] for event in events]
        assert row["candidate_engine"] == [event["engine"] for event in events]
    judged = read_split(tmp_path / "out", "judgments")
    assert {row["device"] for row in judged} == {0} and not any(row["terms"] for row in judged)
    assert {engine for row in judged for engine in row["candidate_engine"]} == {0}
    assert not any(badges for row in judged for badges in row["candidate_badges"])
    assert any(tags for row in judged for tags in row["candidate_tags"])
    assert {row["query_kind"] for row in judged} == {hash_id("broad"), hash_id("exact")}


def as_csv(raw: Raw) -> tuple[Raw, RawLog]:
    """Lists as text with a separator, with blanks around ids."""
    written = {
        table: [{k: " | ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        for table, rows in raw.items()
    }
    return written, RawLog(**{name: RawTable(path=f"{name}.csv") for name in raw})


def test_text_with_a_separator_is_read_as_lists_are(tmp_path: Path) -> None:
    raw = log_with_ids()
    ids = {"ids": {"separator": "|"}}
    columns = {
        "items": {"tags": {"ids": {"separator": "|", "weights": "tag_scores"}}},
        "impressions": {"badges": ids},
        "users": {"interests": ids},
    }
    written, files = as_csv(raw)
    manifest = run(written, tmp_path, DataConfig(**{**SMALL, "columns": columns}, raw=files), suffix="csv")
    assert manifest["id_kinds"]["badges"] == "text" and not any("badges" in odd for odd in manifest["mixed_ids"])
    items = {as_id(row["item_id"]): row for row in raw["items"]}
    shown = {(row["request_id"], as_id(row["item_id"])): row for row in raw["impressions"]}
    for row in labelled_rows(tmp_path):
        there = [items[item] for item in row["candidate_item_id"]]
        assert row["candidate_tags"] == [[hash_id(tag) for tag in item["tags"]] for item in there]
        weights = (row["candidate_tag_scores"], [item["tag_scores"] for item in there])
        np.testing.assert_allclose(*(list(chain.from_iterable(lists)) for lists in weights), rtol=1e-6)
        events = [shown[row["request_id"], item] for item in row["candidate_item_id"]]
        assert row["candidate_badges"] == [[hash_id(str(badge)) for badge in event["badges"] or []] for event in events]


def test_an_id_of_items_is_an_attribute_by_another_name(tmp_path: Path) -> None:
    raw = log_with_ids()
    declared = {**SMALL, "item_attributes": [], "columns": {"items": {"category_id": "id", "brand_id": "id"}}}
    attributes = run(raw, tmp_path / "a", DataConfig(**SMALL))
    columns = run(raw, tmp_path / "b", DataConfig(**declared))
    assert labelled_rows(tmp_path / "a") == labelled_rows(tmp_path / "b")
    assert {k: v for k, v in attributes.items() if k not in ("digest", "settings")} == {
        k: v for k, v in columns.items() if k not in ("digest", "settings")
    }


def test_what_is_empty_is_told(tmp_path: Path) -> None:
    raw = log_with_ids()
    empty = run(raw, tmp_path, DataConfig(**DATA))["summary"]["empty"]
    assert empty["items.tags"] == pytest.approx(np.mean([not row["tags"] for row in raw["items"]]))
    assert empty["users.city"] == pytest.approx(np.mean([row["city"] is None for row in raw["users"]]))


def test_candidate_sets_keep_the_ids_of_their_requests_and_items(tmp_path: Path) -> None:
    raw = log_with_ids()
    request = next(row for row in raw["impressions"] if row["terms"])
    write_table([{"request_id": request["request_id"], "item_id": r["item_id"]} for r in raw["items"]], tmp_path / "p.parquet")
    run(raw, tmp_path, DataConfig(**DATA), candidates=tmp_path / "p.parquet")
    (row,) = read_split(tmp_path / "out", "candidates")
    tags = {as_id(item["item_id"]): [hash_id(tag) for tag in item["tags"]] for item in raw["items"]}
    assert row["device"] == request["device"] and row["terms"] == request["terms"]
    assert row["candidate_tags"] == [tags[item] for item in row["candidate_item_id"]] and not any(row["candidate_badges"])


FIT = "expected a list of numbers that are not negative, as many as the row has ids in 'tags'"
BAD: dict[str, tuple[str, Any, str]] = {
    "negative weights": ("tag_scores", [0.5, -1.0], f"row 3: a list of 2, [0.5, -1.0]; {FIT}"),
    "fewer weights than ids": ("tag_scores", [0.5], f"row 3: a list of 1, [0.5]; {FIT}"),
    "no weights": ("tag_scores", None, f"row 3: None; {FIT}"),
    "NaN among weights": ("tag_scores", [0.5, math.nan], f"row 3: a list of 2, [0.5, nan]; {FIT}"),
    "infinity among weights": ("tag_scores", [0.5, math.inf], f"row 3: a list of 2, [0.5, inf]; {FIT}"),
    "null among weights": ("tag_scores", [0.5, None], f"row 3: a list of 2, [0.5, NULL]; {FIT}"),
    "null among ids": (
        "tags",
        ["red", None],
        "row 3: a list of 2, [red, NULL]; expected a list of at most 1,000 ids, no null among",
    ),
    "too many ids": ("tags", ["red"] * 1001, "row 3: a list of 1001, [red, red, "),
}


@pytest.mark.parametrize(("column", "value", "message"), BAD.values(), ids=BAD)
def test_lists_that_are_none_are_refused_by_file_and_row(tmp_path: Path, column: str, value: Any, message: str) -> None:
    raw = log_with_ids()
    raw["items"][2] |= {"tags": ["red", "blue"], "tag_scores": [0.5, 0.5]}
    raw["items"][2][column] = value
    with pytest.raises(RawLogError, match=rf"items.parquet: column {column!r}, {re.escape(message)}"):
        run(raw, tmp_path, DataConfig(**DATA))


def test_text_among_weights_and_what_is_no_list_are_refused(tmp_path: Path) -> None:
    raw = log_with_ids()
    written, files = as_csv(raw)
    columns = {"items": {"tags": {"ids": {"separator": "|", "weights": "tag_scores"}}}}
    written["items"][4] |= {"tags": "red|blue", "tag_scores": "0.5|much"}
    with pytest.raises(
        RawLogError, match=r"items.csv: column 'tag_scores', row 5: '0.5\|much'; expected a list, or text with '\|'"
    ):
        run(written, tmp_path, DataConfig(**{**SMALL, "columns": columns}, raw=files), suffix="csv")
    plain = {"items": {"tags": "ids"}}
    with pytest.raises(RawLogError, match=r"items.csv: column 'tags' is VARCHAR; expected a list of .*separator: ..."):
        run(written, tmp_path / "b", DataConfig(**{**SMALL, "columns": plain}, raw=files), suffix="csv")


def test_weights_must_be_there(tmp_path: Path) -> None:
    raw = log_with_ids()
    for row in raw["items"]:
        del row["tag_scores"]
    with pytest.raises(RawLogError, match=r"items.parquet: column 'tag_scores' is missing"):
        run(raw, tmp_path, DataConfig(**DATA))


def test_ids_of_requests_have_one_value_a_request(tmp_path: Path) -> None:
    raw = log_with_ids()
    request = next(row["request_id"] for row in raw["impressions"] if row["position"] == 2)
    for place, row in enumerate(row for row in raw["impressions"] if row["request_id"] == request):
        row["terms"] = [place, 7]
    with pytest.raises(
        RawLogError, match=r"belong to one request, \d+, but differ in 'terms': a list of 2, \[0, 7\] and a list of 2"
    ):
        run(raw, tmp_path, DataConfig(**DATA))
