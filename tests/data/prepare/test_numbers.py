"""Numbers of the log's own: from every table to the samples, and what is learned of the train part."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared_logs import SMALL, labelled_rows, run
from raw_logs import Raw, as_id, random_log, read_split, write_table

from prectr_torchrec.config.columns import NumberColumn
from prectr_torchrec.config.data import DataConfig, RawLog, RawTable
from prectr_torchrec.data.columns import declared_of
from prectr_torchrec.data.raw.source import RawLogError

COLUMNS: dict[str, Any] = {
    "users": {"age": "number"},
    "queries": {"words": "number"},
    "requests": {"hour": {"number": {"bins": 4}}},
    "items": {"price": {"number": {"transform": "log1p"}}},
    "impressions": {"bm25": {"number": {"transform": "signed_log"}}},
}
DATA: dict[str, Any] = {**SMALL, "columns": COLUMNS}


def number(rng: np.random.Generator) -> float | None:
    return None if rng.random() < 0.2 else round(float(rng.gamma(2, 10)), 2)


def log_with_numbers(seed: int = 3) -> Raw:
    raw, rng = random_log(seed), np.random.default_rng(seed)
    users = sorted({row["user_id"] for row in raw["impressions"]})
    raw["users"] = [{"user_id": user, "age": 20.5 + user % 9} for user in users[1:]]  # the first has no row
    for table, name in (("items", "price"), ("queries", "words"), ("impressions", "bm25")):
        for row in raw[table]:
            row[name] = number(rng)
    hours = {row["request_id"]: number(rng) for row in raw["impressions"]}
    for row in raw["impressions"]:
        row["hour"] = hours[row["request_id"]]
        row["bm25"] = row["bm25"] and -row["bm25"]
    return raw


def as_float32(value: float | None) -> float | None:
    return None if value is None else float(np.float32(value))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_every_number_of_a_sample_is_the_log_s_own(tmp_path: Path, suffix: str) -> None:
    raw = log_with_numbers()
    files = RawLog(**{name: RawTable(path=f"{name}.{suffix}") for name in raw})
    run(raw, tmp_path, DataConfig(**DATA, raw=files), suffix=suffix)
    of = {table: {as_id(row[key]): row for row in raw[table]} for table, key in KEYS.items()}
    shown = {(row["request_id"], as_id(row["item_id"])): row for row in raw["impressions"]}
    rows = labelled_rows(tmp_path)
    assert len(rows) == len({row["request_id"] for row in raw["impressions"]})
    for row in rows:
        events = [shown[row["request_id"], item] for item in row["candidate_item_id"]]
        assert row["user_age"] == as_float32(of["users"].get(row["user_id"], {"age": None})["age"])
        assert row["query_words"] == as_float32(of["queries"][row["query_id"]]["words"])
        assert row["hour"] == as_float32(events[0]["hour"])
        assert row["candidate_price"] == [as_float32(of["items"][item]["price"]) for item in row["candidate_item_id"]]
        assert row["candidate_bm25"] == [as_float32(event["bm25"]) for event in events]
    judged = read_split(tmp_path / "out", "judgments")
    assert {row["hour"] for row in judged} == {None} and {v for row in judged for v in row["candidate_bm25"]} == {None}
    assert any(v is not None for row in judged for v in (row["query_words"], *row["candidate_price"]))


KEYS = {"users": "user_id", "queries": "query_id", "items": "item_id"}


def test_what_rankers_know_of_numbers_is_of_the_train_part(tmp_path: Path) -> None:
    raw = log_with_numbers()
    raw["impressions"][-1]["bm25"], last = -1e6, max(row["timestamp"] for row in raw["impressions"])
    raw["impressions"][-1]["timestamp"], raw["impressions"][-1]["request_id"] = last + 1, 10**6  # of the test part
    learned = run(raw, tmp_path, DataConfig(**DATA))["numbers"]
    train = read_split(tmp_path / "out", "train")
    for column, _ in declared_of(DataConfig(**DATA), NumberColumn):
        values = [v for row in train for v in (row[column.name] if column.listed else [row[column.name]])]
        known, found = np.array([v for v in values if v is not None]), learned[column.name]
        bins = 4 if column.name == "hour" else 16
        np.testing.assert_allclose(found["edges"], np.unique(np.quantile(known, np.linspace(0, 1, bins + 1))), rtol=1e-6)
        logarithmic = column.name in ("candidate_price", "candidate_bm25")
        seen = np.sign(known) * np.log1p(np.abs(known)) if logarithmic else known
        assert found["mean"] == pytest.approx(seen.mean()) and found["deviation"] == pytest.approx(seen.std())
        assert found["missing"] == pytest.approx(1 - len(known) / len(values))


def test_a_number_that_is_never_there_and_one_that_never_changes_are_learned_too(tmp_path: Path) -> None:
    raw = log_with_numbers()
    for row in raw["items"]:
        row["price"] = math.nan
    for row in raw["queries"]:
        row["words"] = 3
    learned = run(raw, tmp_path, DataConfig(**DATA))["numbers"]
    assert learned["candidate_price"] == {"edges": [], "mean": 0.0, "deviation": 1.0, "missing": 1.0}
    assert learned["query_words"] == {"edges": [3.0], "mean": 3.0, "deviation": 1.0, "missing": 0.0}


def test_candidate_sets_keep_the_numbers_of_their_requests_and_items(tmp_path: Path) -> None:
    raw = log_with_numbers()
    request = raw["impressions"][0]
    pairs = [{"request_id": request["request_id"], "item_id": row["item_id"]} for row in raw["items"]]
    write_table(pairs, tmp_path / "pairs.parquet")
    manifest = run(raw, tmp_path, DataConfig(**DATA), candidates=tmp_path / "pairs.parquet")
    (row,) = read_split(tmp_path / "out", "candidates")
    assert row["hour"] == as_float32(request["hour"]) and set(row["candidate_bm25"]) == {None}
    prices = {as_id(item["item_id"]): as_float32(item["price"]) for item in raw["items"]}
    assert row["candidate_price"] == [prices[item] for item in row["candidate_item_id"]] and manifest["numbers"] == {}
    queries = [{"query_id": row["query_id"], "item_id": raw["items"][0]["item_id"]} for row in raw["queries"]]
    write_table(queries, tmp_path / "queries.parquet")
    (tmp_path / "raw2").mkdir()
    run(raw, tmp_path / "raw2", DataConfig(**DATA), candidates=tmp_path / "queries.parquet")
    rows = read_split(tmp_path / "raw2" / "out", "candidates")
    assert {row["hour"] for row in rows} == {None} and {row["query_words"] for row in rows} != {None}


def test_candidate_sets_may_bring_what_the_engine_said_of_each(tmp_path: Path) -> None:
    raw = log_with_numbers()
    request = raw["impressions"][0]["request_id"]
    given = {item["item_id"]: number for number, item in enumerate(raw["items"])}
    write_table([{"request_id": request, "item_id": i, "bm25": n or None} for i, n in given.items()], tmp_path / "sets.parquet")
    run(raw, tmp_path, DataConfig(**DATA), candidates=tmp_path / "sets.parquet")
    (row,) = read_split(tmp_path / "out", "candidates")
    known = {as_id(item): float(number) if number else None for item, number in given.items()}
    assert row["candidate_bm25"] == [known[item] for item in row["candidate_item_id"]]
    write_table([{"request_id": request, "item_id": next(iter(given)), "bm25": "high"}], tmp_path / "sets.csv")
    (tmp_path / "again").mkdir()
    with pytest.raises(RawLogError, match=r"sets.csv: column 'bm25', row 1: 'high'; expected a number"):
        run(raw, tmp_path / "again", DataConfig(**DATA), candidates=tmp_path / "sets.csv")


BAD: dict[str, tuple[str, str, Any, str]] = {
    "infinite": (
        "items",
        "price",
        math.inf,
        r"items.parquet: column 'price', row 2: inf; expected a number from 0 on, no inf",
    ),
    "minus infinite": (
        "impressions",
        "bm25",
        -math.inf,
        r"impressions.parquet: column 'bm25', row 2: -inf; expected a number",
    ),
    "negative under log1p": ("items", "price", -1.0, r"column 'price', row 2: -1.0; expected a number from 0 on"),
}


@pytest.mark.parametrize(("table", "column", "value", "message"), BAD.values(), ids=BAD)
def test_a_number_that_is_none_is_refused_by_file_and_row(
    tmp_path: Path, table: str, column: str, value: float, message: str
) -> None:
    raw = log_with_numbers()
    raw[table][1][column] = value
    with pytest.raises(RawLogError, match=message):
        run(raw, tmp_path, DataConfig(**DATA))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_text_in_a_column_of_numbers_is_refused_by_file_row_and_value(tmp_path: Path, suffix: str) -> None:
    raw = log_with_numbers()
    for number, row in enumerate(raw["items"], 1):
        row["price"] = "12 EUR" if number == 7 else f"{number}.5"
    files = RawLog(**{name: RawTable(path=f"{name}.{suffix}") for name in raw})
    with pytest.raises(RawLogError, match=rf"items.{suffix}: column 'price', row 7: '12 EUR'; expected a number from 0 on"):
        run(raw, tmp_path, DataConfig(**DATA, raw=files), suffix=suffix)


def test_a_column_of_requests_has_one_value_a_request(tmp_path: Path) -> None:
    raw = log_with_numbers()
    request = next(row["request_id"] for row in raw["impressions"] if row["position"] == 2)
    for place, row in enumerate(row for row in raw["impressions"] if row["request_id"] == request):
        row["hour"] = float(place)
    message = r"belong to one request, \d+, but differ in 'hour': 0.0 and \d.0; the rows of a request share .*, hour"
    with pytest.raises(RawLogError, match=message):
        run(raw, tmp_path, DataConfig(**DATA))


def test_a_declared_column_must_be_there(tmp_path: Path) -> None:
    raw = log_with_numbers()
    for row in raw["items"]:
        del row["price"]
    with pytest.raises(RawLogError, match=r"items.parquet: column 'price' is missing"):
        run(raw, tmp_path, DataConfig(**DATA))
    without_users = DATA | {"raw": RawLog(users=None)}
    with pytest.raises(RawLogError, match=r"data.raw.users is null, and columns of users are wanted: age"):
        run(log_with_numbers(), tmp_path / "b", DataConfig(**without_users))


def test_the_summary_tells_how_much_is_missing(tmp_path: Path) -> None:
    raw = log_with_numbers()
    empty = run(raw, tmp_path, DataConfig(**DATA))["summary"]["empty"]
    prices = [row["price"] is None for row in raw["items"]]
    assert empty["items.price"] == pytest.approx(np.mean(prices))
    assert {"users.age", "queries.words", "impressions.hour", "impressions.bm25"} <= empty.keys()


MOMENTS: dict[str, Any] = {
    "users": {"joined": "time"},
    "items": {"listed": {"time": {"bins": 4}}},
    "requests": {"session": "time"},
}


def log_with_moments() -> Raw:
    """Of 40 seconds: moments before them, among them, after them, and none."""
    raw = random_log(3)
    for n, item in enumerate(raw["items"]):
        item["listed"] = (None, -86_400 * (n % 7), 20, 10**6)[n % 4]
    raw["users"] = [{"user_id": user, "joined": -3600 * user} for user in sorted({r["user_id"] for r in raw["impressions"]})[1:]]
    for row in raw["impressions"]:
        row["session"] = row["timestamp"] - 9
    return raw


def days(moment: int | None, time: int) -> float | None:
    return None if moment is None or moment > time else float(np.float32((time - moment) / 86_400))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_moment_is_seen_as_days_from_it_to_the_request(tmp_path: Path, suffix: str) -> None:
    raw, data = log_with_moments(), {**SMALL, "columns": MOMENTS}
    files = RawLog(**{name: RawTable(path=f"{name}.{suffix}") for name in raw})
    learned = run(raw, tmp_path, DataConfig(**data, raw=files), suffix=suffix)["numbers"]
    of = {table: {as_id(row[key]): row for row in raw[table]} for table, key in KEYS.items()}
    seen: set[bool] = set()
    for row in labelled_rows(tmp_path):
        time = row["timestamp"]
        assert row["user_joined"] == days(of["users"].get(row["user_id"], {"joined": None})["joined"], time)
        assert row["session"] == days(time - 9, time)
        assert row["candidate_listed"] == [days(of["items"][item]["listed"], time) for item in row["candidate_item_id"]]
        seen |= {value is None for value in row["candidate_listed"]}
    assert seen == {True, False}
    judged = read_split(tmp_path / "out", "judgments")
    assert {v for row in judged for v in row["candidate_listed"]} <= {None, *(days(-86_400 * n, 0) for n in range(7))}
    train = read_split(tmp_path / "out", "train")
    known = np.array([v for row in train for v in row["candidate_listed"] if v is not None])
    np.testing.assert_allclose(
        learned["candidate_listed"]["edges"], np.unique(np.quantile(known, np.linspace(0, 1, 5)).astype(np.float32)), rtol=1e-6
    )


def test_a_moment_that_is_none_is_named(tmp_path: Path) -> None:
    raw = log_with_moments()
    for item in raw["items"]:
        item["listed"] = "1970-01-01T00:00:05Z"
    raw["items"][1]["listed"] = "yesterday"
    files = RawLog(**{name: RawTable(path=f"{name}.csv") for name in raw})
    with pytest.raises(RawLogError, match=r"items.csv: column 'listed', row 2: 'yesterday'; expected seconds"):
        run(raw, tmp_path, DataConfig(**SMALL, raw=files, columns=MOMENTS), suffix="csv")
