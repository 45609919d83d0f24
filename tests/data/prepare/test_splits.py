"""Which rows the splits have: by time, of judgments, of new queries, and of candidates without labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from prepared_logs import SMALL, TEXT, labelled_rows, run
from raw_logs import (
    Raw,
    as_id,
    random_log,
    read_split,
    write_log,
    write_table,
)

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.prepare.prepare import prepare


def with_new_queries(raw: Raw) -> Raw:
    """Adds judged queries: of id 80 and 81 searched at 25 and 35 alone, 82 never, 83 at 35 in the words of a query of train, and
    84 never, in the words of 81."""
    texts = {80: "late", 81: "later", 82: "never", 83: f" {raw['queries'][0]['query'].upper()} ", 84: "LATER "}
    raw["queries"] += [{"query_id": query, "query": text} for query, text in texts.items()]
    raw["judgments"] += [
        {"query_id": query, "item_id": raw["items"][i]["item_id"], "relevance": 2.0} for query in texts for i in (1, 2)
    ]
    event = raw["impressions"][0]
    for request, (query, time) in enumerate(((80, 25), (81, 35), (83, 35)), 1000):
        raw["impressions"].append({**event, "request_id": request, "query_id": query, "timestamp": time})
    return raw


def test_judgments_of_queries_that_only_validation_or_test_search_are_left_out_and_counted(tmp_path: Path) -> None:
    raw = with_new_queries(random_log(8))
    manifest = run(raw, tmp_path, DataConfig(**SMALL))
    judged = {row["query_id"] for row in read_split(tmp_path / "out", "judgments")}
    searched_in_train = {row["query_id"] for row in read_split(tmp_path / "out", "train")}
    assert judged & {80, 81, 82, 83, 84} == {82, 83}
    assert judged >= searched_in_train & {row["query_id"] for row in raw["judgments"]}
    assert manifest["new_queries"] == {"queries": 3, "judgments": 6}


def test_a_visible_grade_of_a_new_query_stays_a_feature(tmp_path: Path) -> None:
    raw = with_new_queries(random_log(7))
    item = raw["impressions"][0]["item_id"]
    raw["judgments"] = [row for row in raw["judgments"] if (row["query_id"], row["item_id"]) != (81, item)]
    raw["judgments"].append({"query_id": 81, "item_id": item, "relevance": 3.0})
    run(raw, tmp_path, DataConfig(**SMALL))
    (row,) = [row for row in read_split(tmp_path / "out", "test") if row["query_id"] == 81]
    assert row["candidate_relevance"] == [3.0]


def test_a_query_that_narrow_training_rows_lack_is_new(tmp_path: Path) -> None:
    raw = random_log(7)
    raw["judgments"] = [
        row for row in raw["judgments"] if row["query_id"] != raw["queries"][0]["query_id"] or row["relevance"] < 2
    ]
    run(raw, tmp_path, DataConfig(**SMALL | {"train_minimum_grade": 2.0}))
    judged, trained = ({row["query_id"] for row in read_split(tmp_path / "out", split)} for split in ("judgments", "train"))
    assert trained and judged <= trained


def test_judgments_become_rows_without_user_or_past(tmp_path: Path) -> None:
    raw = random_log(8)
    run(raw, tmp_path, DataConfig(**SMALL))
    rows = read_split(tmp_path / "out", "judgments")
    found = {(r["query_id"], i): g for r in rows for i, g in zip(r["candidate_item_id"], r["candidate_relevance"], strict=True)}
    assert found == {(j["query_id"], j["item_id"]): pytest.approx(j["relevance"]) for j in raw["judgments"]}
    for row in rows:
        assert row["request_id"] == row["query_id"]
        assert (row["user_id"], row["timestamp"], row["user_events"], row["query_events"]) == (0, 0, 0, 0)
        assert row["history_item_id"] == row["peer_item_id"] == []
        assert set(row["candidate_click"]) == {None}


def test_a_query_with_many_judged_items_takes_several_rows(tmp_path: Path) -> None:
    raw = random_log(8)
    raw["items"] += [{"item_id": i, "title": "more", "category_id": 1, "brand_id": 1} for i in range(150)]
    raw["judgments"] += [{"query_id": raw["queries"][5]["query_id"], "item_id": i, "relevance": 2.0} for i in range(150)]
    run(raw, tmp_path, DataConfig(**SMALL))
    rows = [r for r in read_split(tmp_path / "out", "judgments") if r["query_id"] == raw["queries"][5]["query_id"]]
    assert [r["num_candidates"] for r in rows] == [64, 64, 22]
    assert [i for r in rows for i in r["candidate_item_id"]] == list(range(150))


def test_candidates_get_the_features_of_their_request_and_no_labels(tmp_path: Path) -> None:
    raw, data = random_log(9), DataConfig(**SMALL)
    run(raw, tmp_path, data)
    given = [{"request_id": r, "item_id": i["item_id"], "relevance": 9.9} for r in (3, 17) for i in raw["items"]]
    write_table(given, tmp_path / "candidates.csv")
    manifest = prepare(data, TEXT, tmp_path / "raw", tmp_path / "scored", candidates=tmp_path / "candidates.csv", progress=False)
    assert list(manifest["splits"]) == ["candidates"]
    assert not (tmp_path / "scored" / "tokenizer").exists()
    logged = {row["request_id"]: row for row in labelled_rows(tmp_path)}
    for row in read_split(tmp_path / "scored", "candidates"):
        counted = {name for name in row if name.endswith("_trained")}
        assert {row[name] for name in counted if not name.startswith("candidate_")} == {0}
        same = {name for name in row if not name.startswith("candidate_") and name != "num_candidates"} - counted
        assert {name: row[name] for name in same} == {name: logged[row["request_id"]][name] for name in same}
        assert row["candidate_item_id"] == sorted(i["item_id"] for i in raw["items"])
        assert set(row["candidate_click"]) == {None}
        assert set(row["candidate_position"]) == {0}
        place = {item: n for n, item in enumerate(row["candidate_item_id"])}
        for n, item in enumerate(logged[row["request_id"]]["candidate_item_id"]):
            for name in ("candidate_relevance", "candidate_shown", "candidate_examined", "candidate_title"):
                assert row[name][place[item]] == logged[row["request_id"]][name][n]


def test_candidates_of_queries_carry_the_grades_of_their_file(tmp_path: Path) -> None:
    raw = random_log(10, text_ids=True)
    given = [{"query_id": "query5", "item_id": f"item{i}", "relevance": None if i == 2 else 1.5} for i in range(4)]
    write_table(given, write_log(raw, tmp_path / "raw") / "unseen.parquet")
    prepare(
        DataConfig(**SMALL), TEXT, tmp_path / "raw", tmp_path / "out", candidates=tmp_path / "raw/unseen.parquet", progress=False
    )
    (row,) = read_split(tmp_path / "out", "candidates")
    assert row["query"] == "query 5"
    expected = {as_id(f"item{i}"): None if i == 2 else 1.5 for i in range(4)}
    assert dict(zip(row["candidate_item_id"], row["candidate_relevance"], strict=True)) == expected
