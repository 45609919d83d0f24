"""Queries made of titles: what they are made of, what they are paired with, and what they leave alone."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from raw_logs import Raw, Row, write_log, write_table

from prectr_torchrec.config.data import DataConfig, Split
from prectr_torchrec.config.text import PairsConfig
from prectr_torchrec.data.pairs.made_queries import mistype
from prectr_torchrec.data.pairs.pairs import write_pairs

WORDS = [f"word{n}" for n in range(60)]
ITEMS, QUERIES = 120, 40


def shop() -> Raw:
    """Titles of 2 to 9 words, all of which begin with "The"; queries of 1 to 3."""
    rng = np.random.default_rng(0)
    event = {"timestamp": 1, "user_id": 1, "click": 0}
    return {
        "items": [
            {
                "item_id": i,
                "title": f"The {', '.join(rng.choice(WORDS, 1 + i % 8, replace=False))}!",
                "category_id": i % 5,
                "brand_id": 1,
            }
            for i in range(ITEMS)
        ],
        "queries": [{"query_id": q, "query": " ".join(rng.choice(WORDS, 1 + q % 3))} for q in range(QUERIES)],
        "judgments": [{"query_id": q, "item_id": q, "relevance": 2.0} for q in range(QUERIES)],
        "impressions": [{"request_id": q, "query_id": q, "item_id": q + 1, **event} for q in range(QUERIES)],
    }


def pairs_of(folder: Path, made: float = 20.0, raw: Raw | None = None, *, mistyped: float = 0.0, **options: Path) -> list[Row]:
    settings = PairsConfig(made_queries=made, mistyped=mistyped, validation_fraction=0.2, test_fraction=0.2)
    data = DataConfig(split=Split(validation_fraction=0, test_fraction=0))
    write_pairs(data, settings, write_log(raw or shop(), folder / "raw"), folder / "pairs.parquet", **options)
    return pq.read_table(folder / "pairs.parquet").to_pylist()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return pairs_of(tmp_path_factory.mktemp("made"))


def test_a_made_query_is_some_words_of_one_of_its_titles_in_their_order(pairs: list[Row]) -> None:
    titles = defaultdict(list)
    for row in pairs:
        if row["source"] == "made":
            titles[row["query"]].append(row["title"].lower().replace(",", "").replace("!", "").split())
    assert len(titles) > 200
    for query, found in titles.items():
        words = query.split()
        assert 1 <= len(words) <= 3 and 1 <= len(found) <= 4
        assert any(len(title) >= 3 and _in_order(words, title) for title in found)


def _in_order(words: list[str], title: list[str]) -> bool:
    rest = iter(title)
    return all(word in rest for word in words)


def test_others_that_it_is_paired_with_share_a_word_or_the_category(pairs: list[Row]) -> None:
    rare = defaultdict(set)
    for row in pairs:
        if row["source"] == "made":
            words = set(row["query"].split()) - {"the"}
            rare[row["query"]].add(bool(words & set(row["title"].lower().replace(",", "").replace("!", "").split())))
    with_words = [found for query, found in rare.items() if query != "the"]
    assert np.mean([True in found for found in with_words]) == 1.0
    assert np.mean([False in found for found in with_words]) > 0.3  # of the category alone


def test_some_are_made_once_more_with_a_typing_error(tmp_path: Path, pairs: list[Row]) -> None:
    found = pairs_of(tmp_path, mistyped=0.5)
    assert [row for row in found if row in pairs] == pairs  # the others stay as they are
    right, all_made = ({row["query"] for row in rows if row["source"] == "made"} for rows in (pairs, found))
    wrong = all_made - right
    assert len(wrong) > 0.3 * len(right)
    raw = shop()  # now the log asks for whole titles: there is nothing left to make, nor to mistype
    raw["items"] = [item | {"title": f"Word{item['item_id']} and more"} for item in raw["items"]]
    raw["queries"] = [{"query_id": i, "query": f" WORD{i}  and more"} for i in range(ITEMS)]
    assert "made" not in {row["source"] for row in pairs_of(tmp_path / "whole", raw=raw, mistyped=0.5)}


@pytest.mark.parametrize("text", ["", "a", "ab", "cordless drill 1/2 in"])
def test_a_typing_error_is_one_error(text: str) -> None:
    random = np.random.default_rng(0)
    found = {mistype(text, random) for _ in range(300)}
    assert all(_distance(text, wrong) <= 2 for wrong in found)  # two letters swapped are two edits
    assert all(wrong[:1] == text[:1] and wrong == " ".join(wrong.split()) for wrong in found)
    if len(text) > 2:
        assert "cordlessdrill 1/2 in" in found and len(found) > 100


def _distance(a: str, b: str) -> int:
    """Levenshtein's."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def test_made_queries_only_teach_and_are_none_of_the_log(pairs: list[Row]) -> None:
    made = [row for row in pairs if row["source"] == "made"]
    assert {row["split"] for row in made} == {"train"} and {row["relevance"] for row in made} == {None}
    asked = {row["query"] for row in shop()["queries"]}
    assert not asked & {row["query"] for row in made}


def test_what_the_log_has_stays_as_it_is(tmp_path: Path, pairs: list[Row]) -> None:
    assert pairs_of(tmp_path, made=0.0) == [row for row in pairs if row["source"] != "made"]


def test_the_same_log_gives_the_same_pairs(tmp_path: Path, pairs: list[Row]) -> None:
    assert pairs_of(tmp_path) == pairs


def test_a_text_that_is_held_out_is_not_made(tmp_path: Path, pairs: list[Row]) -> None:
    text = next(row["query"] for row in pairs if row["source"] == "made")
    raw = shop()
    raw["queries"].append({"query_id": 1000, "query": f"  {text.upper()} "})
    raw["judgments"].append({"query_id": 1000, "item_id": 0, "relevance": 2.0})
    write_table([{"query_id": 1000}], tmp_path / "test.parquet")
    rows = pairs_of(tmp_path, raw=raw, test_queries=tmp_path / "test.parquet")
    assert {row["split"] for row in rows if row["query"].strip().lower() == text} == {"test"}
    assert any(row["source"] == "made" for row in rows)
