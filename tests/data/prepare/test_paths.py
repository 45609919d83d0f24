"""Category paths: one id a level, alike in samples and in requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prepared_logs import SMALL, labelled_rows, run
from raw_logs import Raw, as_id, random_log

from prectr_torchrec.config.data import DataConfig, RawLog, RawTable
from prectr_torchrec.config.run import validate_config
from prectr_torchrec.data.hashing import hash_id
from prectr_torchrec.data.raw.source import RawLogError
from prectr_torchrec.serving.request import RequestError, RequestSchema

COLUMNS: dict[str, Any] = {"items": {"category": "path", "shelf": {"path": {"separator": "/"}}}, "requests": {"page": "path"}}
DATA = DataConfig(**SMALL, columns=COLUMNS)
WRITTEN = ["Home > Kitchen > Knives", "Home>Kitchen", "  Home ", "Garden > > Tools >", "", None, ">", "Garden"]
LEVELS = [
    ["Home", "Home > Kitchen", "Home > Kitchen > Knives"],
    ["Home", "Home > Kitchen"],
    ["Home"],
    ["Garden", "Garden > Tools"],
    [],
    [],
    [],
    ["Garden"],
]


def log_with_paths() -> Raw:
    raw = random_log(4)
    for number, item in enumerate(raw["items"]):
        item["category"] = WRITTEN[number % len(WRITTEN)]
        item["shelf"] = f"{number % 2}/x"
    for event in raw["impressions"]:
        event["page"] = WRITTEN[event["request_id"] % len(WRITTEN)]
    return raw


def ids(levels: list[str]) -> list[int]:
    return [hash_id(level) for level in levels]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_path_becomes_an_id_for_each_level(tmp_path: Path, suffix: str) -> None:
    raw = log_with_paths()
    files = RawLog(**{name: RawTable(path=f"{name}.{suffix}") for name in raw})
    run(raw, tmp_path, DATA.model_copy(update={"raw": files}), suffix=suffix)
    places = {as_id(item["item_id"]): number for number, item in enumerate(raw["items"])}
    rows = labelled_rows(tmp_path)
    assert rows
    for row in rows:
        numbers = [places[item] for item in row["candidate_item_id"]]
        assert row["candidate_category"] == [ids(LEVELS[number % len(LEVELS)]) for number in numbers]
        assert row["candidate_shelf"] == [[hash_id("1") if n % 2 else 0, hash_id(f"{n % 2} / x")] for n in numbers]
        assert row["page"] == ids(LEVELS[row["request_id"] % len(LEVELS)])


def test_a_request_has_the_path_as_the_log_writes_it() -> None:
    schema = RequestSchema(DATA)
    requests = [
        {"query": "q", "page": path, "candidates": [{"item_id": 1, "category": path, "shelf": "0/x"}, {"item_id": 2}]}
        for path in WRITTEN
    ]
    for row, levels in zip(schema.from_plain(requests).to_pylist(), LEVELS, strict=True):
        assert row["page"] == ids(levels) and row["candidate_category"] == [ids(levels), []]
        assert row["candidate_shelf"] == [[0, hash_id("0 / x")], []]
    again = schema.from_plain([{"query": "q", "page": ids(LEVELS[0]), "candidates": [{"item_id": 1}]}]).to_pylist()
    assert again[0]["page"] == ids(LEVELS[0])
    columns = {"query": ["a", "b"], "candidate_item_id": [[1], [2, 3]]}
    table = pa.table({**columns, "page": WRITTEN[:2], "candidate_category": [WRITTEN[:1], WRITTEN[1:3]]})
    taken = schema.from_arrow(table).to_pylist()
    assert [row["page"] for row in taken] == [ids(levels) for levels in LEVELS[:2]]
    assert taken[1]["candidate_category"] == [ids(levels) for levels in LEVELS[1:3]]
    for wrong in (7, ["Home", "Kitchen"], {"Home": 1}):
        with pytest.raises(RequestError, match=r"page: got .*; expected a text of at most 50 levels with '>' between them"):
            schema.from_plain([{**requests[0], "page": wrong}], name=None)


def test_numbers_and_too_deep_paths_are_refused(tmp_path: Path) -> None:
    raw = log_with_paths()
    raw["items"][3]["category"] = ">".join("a" * 51)
    expected = r"items\.parquet: column 'category', row 4: .*; expected text of at most 50 levels, '>' between them"
    with pytest.raises(RawLogError, match=expected):
        run(raw, tmp_path / "deep", DATA)
    for item in raw["items"]:
        item["category"] = 7
    with pytest.raises(RawLogError, match=r"column 'category' is BIGINT; expected text of at most 50 levels"):
        run(raw, tmp_path / "number", DATA)


def test_a_path_is_a_bag_of_a_feature() -> None:
    tree = {
        "name": "x",
        "data": {"columns": COLUMNS},
        "tables": {"category": {"rows": 100, "dim": 4}},
        "features": {"candidate_category": {"table": "category", "pooling": "mean"}},
    }
    assert validate_config(tree, "test").features["candidate_category"].pooling == "mean"
    for wrong in ({"separator": None}, {"weights": "w"}):
        with pytest.raises(ValueError, match="a path is text, with a separator between its levels and without weights"):
            DataConfig(columns={"items": {"category": {"path": wrong}}})
