"""Pairs against a loop over the log, and what every file of pairs must hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import Raw, Row, as_id, random_log, write_log, write_table

from prectr_torchrec.config.data import DataConfig, Split
from prectr_torchrec.config.run import validate_config
from prectr_torchrec.config.text import PairsConfig
from prectr_torchrec.data.hashing import hash_id
from prectr_torchrec.data.pairs.pairs import DRAWS, PairsFile, write_pairs
from prectr_torchrec.data.raw.source import RawLogError
from prectr_torchrec.system.errors import ConfigError

DATA = DataConfig()
PAIRS = PairsConfig(same_category=0.5, other_category=0.3, validation_fraction=0.2, test_fraction=0.3, rows_per_row_group=32)


def shop(*, text_ids: bool = False, requests: int = 12) -> Raw:
    """A log with 200 items of 6 categories and some without, and queries whose text differs in case and spaces only."""
    raw = random_log(requests=requests, text_ids=text_ids)
    name: Callable[[int], Any] = (lambda i: f"item{i}") if text_ids else (lambda i: 4000 + i)
    raw["items"] = [{"item_id": name(i), "title": f"title {i}", "category_id": i % 7 or None, "brand_id": 1} for i in range(200)]
    raw["queries"] += [
        {"query_id": "again" if text_ids else 77, "query": "  QUERY \t1 "},
        {"query_id": "never" if text_ids else 78, "query": "nothing is known of it"},
    ]
    return raw


def reference_pairs(raw: Raw, pairs: PairsConfig, candidates: list[Row], test_queries: list[Any]) -> list[Row]:
    queries = {as_id(row["query_id"]): row["query"] for row in raw["queries"]}
    items = {as_id(row["item_id"]): row for row in raw["items"]}
    category = {item: row["category_id"] or 0 for item, row in items.items()}
    text = {query: re.sub(r"\s+", " ", words).strip().lower() for query, words in queries.items()}
    held_out = {text[as_id(query)] for query in test_queries}
    found: dict[tuple[int, int], Row] = {}
    for source, rows in (("graded", raw["judgments"]), ("shown", raw["impressions"]), ("candidate", candidates)):
        for row in rows:
            grade = row["relevance"] if source == "graded" else None
            found.setdefault((as_id(row["query_id"]), as_id(row["item_id"])), {"source": source, "relevance": grade})
    logged = {key for key, row in found.items() if row["source"] != "candidate"}
    placed = sorted((category[item], item) for item in items if category[item])
    drawn: dict[tuple[int, int], Row] = {}
    for query in sorted(queries):
        own = [category[item] for q, item in sorted(logged) if q == query and category[item]]
        for origin, source, share in ((3, "same_category", pairs.same_category), (4, "other_category", pairs.other_category)):
            wanted = int(len(own) * share + 0.5)
            chosen: list[int] = []
            for number in range(wanted * DRAWS):
                first, second = (_hash(f"{pairs.seed} {origin} {query} {number} {draw}") for draw in (1, 2))
                among = [p for p in placed if p[0] == own[first % len(own)]] if origin == 3 else placed
                kind, item = among[(second if origin == 3 else first) % len(among)]
                if (query, item) not in found and item not in chosen and (origin == 3 or kind not in own):
                    chosen.append(item)
            drawn |= {(query, item): {"source": source, "relevance": None} for item in chosen[:wanted]}
    return [
        {
            "query_id": query,
            "item_id": item,
            "query": queries[query],
            "title": items[item]["title"],
            **row,
            "split": _split(text[query], pairs, text[query] in held_out),
        }
        for (query, item), row in sorted((found | drawn).items())
    ]


def _split(text: str, pairs: PairsConfig, held_out: bool) -> str:
    share = _hash(text) / 2**62
    if held_out or share < pairs.test_fraction:
        return "test"
    return "validation" if share < pairs.test_fraction + pairs.validation_fraction else "train"


def _hash(text: str) -> int:
    return hash_id(text) & (2**62 - 1)


def read(path: Path) -> list[Row]:
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("text_ids", [False, True])
def test_pairs_equal_a_slow_reference(tmp_path: Path, text_ids: bool) -> None:
    raw = shop(text_ids=text_ids)
    request = raw["impressions"][0]
    asked = [{"request_id": request["request_id"], "item_id": row["item_id"]} for row in raw["items"][:60]]
    write_table(asked, tmp_path / "candidates.parquet")
    held_out = [raw["queries"][2]["query_id"]]
    write_table([{"query_id": query} for query in held_out], tmp_path / "test.csv")
    log = write_log(raw, tmp_path / "raw")
    report = write_pairs(
        DATA, PAIRS, log, tmp_path / "p", candidates=tmp_path / "candidates.parquet", test_queries=tmp_path / "test.csv"
    )
    candidates = [{"query_id": request["query_id"], "item_id": row["item_id"]} for row in asked]
    expected = reference_pairs(raw, PAIRS, candidates, held_out)
    rows = read(tmp_path / "p")
    for row in expected:
        row["relevance"] = None if row["relevance"] is None else float(np.float32(row["relevance"]))
    assert rows == expected
    assert {row["source"] for row in rows} == {"graded", "shown", "candidate", "same_category", "other_category"}
    assert report["rows"] == len(rows)
    assert report["by_source"]["shown"] == sum(row["source"] == "shown" for row in rows)
    assert report["grades"]["test"] == sum(row["split"] == "test" and row["relevance"] is not None for row in rows)


def test_a_pair_is_there_once(tmp_path: Path) -> None:
    write_pairs(DATA, PAIRS, write_log(shop(requests=60), tmp_path / "raw"), tmp_path / "p")
    keys = [(row["query_id"], row["item_id"]) for row in read(tmp_path / "p")]
    assert keys == sorted(set(keys))


def test_queries_of_one_text_are_in_one_split(tmp_path: Path) -> None:
    raw = shop()
    raw["queries"] = [{"query_id": n, "query": f"{' ' * (n % 2)}Word{n // 2}{'  ' if n % 3 else ' '}End"} for n in range(60)]
    raw["judgments"] = [{"query_id": n, "item_id": 4001, "relevance": 2.0} for n in range(60)]
    raw["impressions"] = [{**raw["impressions"][0], "query_id": 0}]
    write_table([{"query_id": 7}], tmp_path / "test.parquet")
    write_pairs(DATA, PAIRS, write_log(raw, tmp_path / "raw"), tmp_path / "p", test_queries=tmp_path / "test.parquet")
    split = {row["query_id"]: row["split"] for row in read(tmp_path / "p")}
    assert set(split.values()) == {"train", "validation", "test"}
    assert all(split[n] == split[n + 1] for n in range(0, 60, 2))
    assert split[6] == split[7] == "test"


def test_queries_that_only_validation_or_test_search_teach_nothing(tmp_path: Path) -> None:
    raw = shop(requests=40)
    raw["queries"] += [{"query_id": 500 + n, "query": f"words {n // 2}"} for n in range(40)]
    raw["judgments"] += [{"query_id": 500 + n, "item_id": 4001, "relevance": 2.0} for n in range(40)]
    event = {**raw["impressions"][0], "timestamp": 50}
    raw["impressions"] += [{**event, "request_id": 900 + n, "query_id": 500 + n} for n in range(0, 20, 2)]
    data = DataConfig(split=Split(validation_from=45, test_from=48))
    report = write_pairs(data, PAIRS, write_log(raw, tmp_path / "raw"), tmp_path / "p")
    split = {row["query_id"]: row["split"] for row in read(tmp_path / "p")}
    new = {500 + n for n in range(20)}
    assert {split[query] for query in new} == {"new", "test"}
    assert all(name != "new" for query, name in split.items() if query not in new)
    assert {split[500 + n] for n in range(20, 40)} == {"train", "validation", "test"}
    assert report["new_queries"] == {"queries": 20, "judgments": 20}
    assert report["by_split"]["new"] == sum(split[row["query_id"]] == "new" for row in read(tmp_path / "p"))


def test_drawn_pairs_are_of_the_category_that_they_say(tmp_path: Path) -> None:
    raw = shop(requests=40)
    write_pairs(DATA, PAIRS, write_log(raw, tmp_path / "raw"), tmp_path / "p")
    category = {row["item_id"]: row["category_id"] for row in raw["items"]}
    rows = read(tmp_path / "p")
    own = {(row["query_id"], category[row["item_id"]]) for row in rows if row["source"] in ("graded", "shown")}
    for row in rows:
        if row["source"] in ("same_category", "other_category"):
            same = (row["query_id"], category[row["item_id"]]) in own
            assert same == (row["source"] == "same_category")


def test_the_same_log_gives_the_same_bytes(tmp_path: Path) -> None:
    log = write_log(shop(), tmp_path / "raw")
    for name in "ab":
        write_pairs(DATA, PAIRS, log, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "a", "b"}


def test_row_groups_are_of_the_size_asked_for(tmp_path: Path) -> None:
    write_pairs(DATA, PAIRS, write_log(shop(requests=60), tmp_path / "raw"), tmp_path / "p")
    metadata = pq.read_metadata(tmp_path / "p")
    sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert sizes[:-1] == [32] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= 32
    pairs = PairsFile.open(tmp_path / "p")
    assert (len(pairs.shard_rows), pairs.rows) == (len(sizes), sum(sizes))
    assert pa.concat_tables(pairs.read_shard(n) for n in range(len(pairs.shard_rows))).equals(pairs.read())


def test_a_level_stands_for_the_mean_of_its_training_grades(tmp_path: Path) -> None:
    raw = shop()
    write_pairs(DATA, PAIRS, write_log(raw, tmp_path / "raw"), tmp_path / "p")
    pairs = PairsFile.open(tmp_path / "p")
    grades = [row["relevance"] for row in read(tmp_path / "p") if row["split"] == "train" and row["relevance"] is not None]
    first = [grade for grade in grades if grade <= 1.5]
    assert pairs.level_grades()[0] == pytest.approx(sum(first) / len(first))
    assert pairs.level_grades()[3] == 3.0


def test_a_level_without_grades_stands_for_the_middle_of_its_range(tmp_path: Path) -> None:
    raw = shop()
    for row in raw["judgments"]:
        row["relevance"] = 2.0
    write_pairs(DATA, PAIRS, write_log(raw, tmp_path / "raw"), tmp_path / "p")
    assert PairsFile.open(tmp_path / "p").level_grades() == pytest.approx([1.25, 2.0, 2.505, 2.92])


def test_a_category_that_is_no_attribute_is_named(tmp_path: Path) -> None:
    pairs = PAIRS.model_copy(update={"category": "categry_id"})
    with pytest.raises(
        RawLogError,
        match=r"pairs.category: 'categry_id' is not in data.item_attributes, nor an id of items .did you mean 'category_id'",
    ):
        write_pairs(DATA, pairs, write_log(shop(), tmp_path / "raw"), tmp_path / "p")


def test_files_beside_the_log_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    log = write_log(shop(), tmp_path / "raw")
    with pytest.raises(RawLogError, match=r"candidates: there is no file .*nowhere$"):
        write_pairs(DATA, PAIRS, log, tmp_path / "p", candidates=tmp_path / "nowhere")
    write_table([{"query_id": 5}], tmp_path / "other.csv")
    with pytest.raises(RawLogError, match=r"other.csv: none of its queries is among the log's"):
        write_pairs(DATA, PAIRS, log, tmp_path / "p", test_queries=tmp_path / "other.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "other.csv"}


def test_held_out_parts_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"pairs: validation_fraction and test_fraction, together 1.1, leave no query"):
        validate_config({"name": "x", "pairs": {"validation_fraction": 0.3, "test_fraction": 0.8}}, "file")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file; `prectr pairs` writes one"):
        PairsFile.open(tmp_path / "nowhere")
    write_table([{"query_id": 1}], tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="pairs version none, this release reads 2"):
        PairsFile.open(tmp_path / "other.parquet")
    (tmp_path / "text").write_text("no parquet", encoding="utf-8")
    with pytest.raises(ValueError, match="text: not a Parquet file"):
        PairsFile.open(tmp_path / "text")
