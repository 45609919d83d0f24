"""Vectors of the log's own: from every table to the samples, and what is learned of the train part."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared_logs import SMALL, labelled_rows, run
from raw_logs import Raw, as_id, random_log, read_split, write_table

from prectr_torchrec.config.columns import VectorColumn
from prectr_torchrec.config.data import DataConfig, RawLog, RawTable
from prectr_torchrec.data.columns import declared_of
from prectr_torchrec.data.item_vectors import ITEM_VECTORS, ItemVectors
from prectr_torchrec.data.raw.source import RawLogError
from prectr_torchrec.data.schema import check_schema, sample_schema

COLUMNS: dict[str, Any] = {
    "users": {"profile": {"vector": 3}},
    "queries": {"intent": {"vector": 2}},
    "requests": {"context": {"vector": 4}},
    "items": {"image": {"vector": 3}},
    "impressions": {"view": {"vector": 2}},
}
DATA: dict[str, Any] = {**SMALL, "columns": COLUMNS}
KEYS = {"users": "user_id", "queries": "query_id", "items": "item_id"}


def vector(rng: np.random.Generator, width: int) -> list[float] | None:
    return None if rng.random() < 0.2 else [float(x) for x in rng.normal(2, 3, width).astype(np.float32)]


def log_with_vectors(seed: int = 3) -> Raw:
    raw, rng = random_log(seed), np.random.default_rng(seed)
    users = sorted({row["user_id"] for row in raw["impressions"]})
    raw["users"] = [{"user_id": user, "profile": vector(rng, 3)} for user in users[1:]]  # the first has no row
    for table, name, width in (("items", "image", 3), ("queries", "intent", 2), ("impressions", "view", 2)):
        for row in raw[table]:
            row[name] = vector(rng, width)
    contexts = {row["request_id"]: vector(rng, 4) for row in raw["impressions"]}
    for row in raw["impressions"]:
        row["context"] = contexts[row["request_id"]]
    return raw


def images(folder: Path, ids: list[int], data: DataConfig | None = None) -> list[list[float] | None]:
    """Of items, from the file that preparation keeps them in."""
    found = ItemVectors.of(data or DataConfig(**DATA), folder / "out" / ITEM_VECTORS).rows("image", np.array(ids))
    return [None if np.isnan(row).any() else row.tolist() for row in found]


def test_every_vector_of_a_sample_is_the_log_s_own(tmp_path: Path) -> None:
    raw = log_with_vectors()
    run(raw, tmp_path, DataConfig(**DATA))
    of = {table: {as_id(row[key]): row for row in raw[table]} for table, key in KEYS.items()}
    shown = {(row["request_id"], as_id(row["item_id"])): row for row in raw["impressions"]}
    rows = labelled_rows(tmp_path)
    assert len(rows) == len({row["request_id"] for row in raw["impressions"]})
    for row in rows:
        events = [shown[row["request_id"], item] for item in row["candidate_item_id"]]
        assert row["user_profile"] == of["users"].get(row["user_id"], {"profile": None})["profile"]
        assert row["query_intent"] == of["queries"][row["query_id"]]["intent"]
        assert row["context"] == events[0]["context"]
        assert "candidate_image" not in row
        assert images(tmp_path, row["candidate_item_id"]) == [of["items"][item]["image"] for item in row["candidate_item_id"]]
        assert row["candidate_view"] == [event["view"] for event in events]
    judged = read_split(tmp_path / "out", "judgments")
    assert {row["context"] for row in judged} == {None} and not any(any(row["candidate_view"]) for row in judged)
    assert any(row["query_intent"] for row in judged)
    schema = pq.read_schema(next((tmp_path / "out" / "train").glob("*.parquet")))
    assert schema.field("context").type.equals(pa.list_(pa.float32(), 4))
    assert schema.field("candidate_view").type.value_type.equals(pa.list_(pa.float32(), 2))


def test_what_rankers_know_of_vectors_is_of_the_train_part(tmp_path: Path) -> None:
    raw = log_with_vectors()
    for row in raw["items"]:
        row["image"] = row["image"] and [row["image"][0], 7.0, row["image"][2]]  # the second never changes
    learned = run(raw, tmp_path, DataConfig(**DATA))["numbers"]
    train = read_split(tmp_path / "out", "train")
    for column, _ in declared_of(DataConfig(**DATA), VectorColumn):
        if column.gathered:
            values = images(tmp_path, [item for row in train for item in row["candidate_item_id"]])
        else:
            values = [v for row in train for v in (row[column.name] if column.listed else [row[column.name]])]
        known, found = np.array([v for v in values if v is not None]), learned[column.name]
        np.testing.assert_allclose(found["mean"], known.mean(0), rtol=1e-6)
        deviation = known.std(0)
        np.testing.assert_allclose(found["deviation"], np.where(deviation > 0, deviation, 1), rtol=1e-6)
        assert found["missing"] == pytest.approx(1 - len(known) / len(values))
    assert learned["candidate_image"]["deviation"][1] == 1.0


def test_a_vector_that_is_never_there_is_learned_and_told_too(tmp_path: Path) -> None:
    raw = log_with_vectors()
    for row in raw["items"]:
        row["image"] = None
    manifest = run(raw, tmp_path, DataConfig(**DATA))
    assert manifest["numbers"]["candidate_image"] == {"mean": [0.0] * 3, "deviation": [1.0] * 3, "missing": 1.0}
    assert manifest["summary"]["empty"]["items.image"] == 1.0
    assert {"users.profile", "queries.intent", "impressions.context"} <= manifest["summary"]["empty"].keys()


def test_candidate_sets_keep_the_vectors_of_their_requests_and_items(tmp_path: Path) -> None:
    raw = log_with_vectors()
    request = next(row for row in raw["impressions"] if row["context"])
    pairs = [{"request_id": request["request_id"], "item_id": row["item_id"]} for row in raw["items"]]
    write_table(pairs, tmp_path / "pairs.parquet")
    run(raw, tmp_path, DataConfig(**DATA), candidates=tmp_path / "pairs.parquet")
    (row,) = read_split(tmp_path / "out", "candidates")
    of_items = {as_id(item["item_id"]): item["image"] for item in raw["items"]}
    assert row["context"] == request["context"] and not any(row["candidate_view"])
    assert images(tmp_path, row["candidate_item_id"]) == [of_items[item] for item in row["candidate_item_id"]]
    write_table(
        [{"query_id": q["query_id"], "item_id": raw["items"][0]["item_id"]} for q in raw["queries"]], tmp_path / "q.parquet"
    )
    (tmp_path / "raw2").mkdir()
    run(raw, tmp_path / "raw2", DataConfig(**DATA), candidates=tmp_path / "q.parquet")
    rows = read_split(tmp_path / "raw2" / "out", "candidates")
    assert {row["context"] for row in rows} == {None} and any(row["query_intent"] for row in rows)


RIGHT = "expected a list of 3 numbers, no null, NaN or infinity among them; null where it is missing"
BAD: dict[str, tuple[Any, str]] = {
    "another width": ([1.0, 2.0], "row 3: a list of 2, [1.0, 2.0]"),
    "nothing in it": ([], "row 3: a list of 0, []"),
    "infinity in it": ([1.0, math.inf, 0.0], "row 3: a list of 3, [1.0, inf, 0.0]"),
    "NaN in it": ([1.0, math.nan, 0.0], "row 3: a list of 3, [1.0, nan, 0.0]"),
    "null in it": ([1.0, None, 0.0], "row 3: a list of 3, [1.0, NULL, 0.0]"),
    "more than a float holds": ([1e39, 0.0, 0.0], "row 3: a list of 3, [1e+39, 0.0, 0.0]"),
    "much too wide": ([0.0] * 500, "row 3: a list of 500, [0.0, 0.0, 0.0"),
}


@pytest.mark.parametrize(("value", "found"), BAD.values(), ids=BAD)
def test_a_vector_that_is_none_is_refused_by_file_and_row(tmp_path: Path, value: Any, found: str) -> None:
    raw = log_with_vectors()
    raw["items"][2]["image"] = value
    with pytest.raises(RawLogError, match=rf"items.parquet: column 'image', {re.escape(found)}.*; {RIGHT}"):
        run(raw, tmp_path, DataConfig(**DATA))


def test_text_in_a_vector_is_refused_by_file_and_row_and_numbers_as_text_are_read(tmp_path: Path) -> None:
    raw = log_with_vectors()
    for row in raw["items"]:
        row["image"] = ["0.5", "1", "-2e3"]
    run(raw, tmp_path, DataConfig(**DATA))
    assert images(tmp_path, labelled_rows(tmp_path)[0]["candidate_item_id"])[0] == [0.5, 1.0, -2000.0]
    raw["items"][4]["image"] = ["0.5", "blue", "1"]
    with pytest.raises(RawLogError, match=rf"items.parquet: column 'image', row 5: a list of 3, \[0.5, blue, 1\]; {RIGHT}"):
        run(raw, tmp_path / "b", DataConfig(**DATA))


def test_what_is_no_list_is_refused_by_its_type(tmp_path: Path) -> None:
    raw = log_with_vectors()
    for row in raw["items"]:
        row["image"] = 0.5
    with pytest.raises(RawLogError, match=rf"items.parquet: column 'image' is DOUBLE; {RIGHT}"):
        run(raw, tmp_path, DataConfig(**DATA))
    for row in raw["items"]:
        row["image"] = [[0.5, 1.0, 2.0]]
    with pytest.raises(RawLogError, match=rf"column 'image' is DOUBLE\[\]\[\]; {RIGHT}"):
        run(raw, tmp_path / "b", DataConfig(**DATA))


def test_csv_has_no_vectors(tmp_path: Path) -> None:
    raw = random_log(3)
    for row in raw["items"]:
        row["image"] = "0.5 1 2"
    csv = RawLog(**{name: RawTable(path=f"{name}.csv") for name in raw})
    data = DataConfig(**{**SMALL, "columns": {"items": {"image": {"vector": 3}}}}, raw=csv)
    with pytest.raises(RawLogError, match=rf"items.csv: column 'image' is VARCHAR; {RIGHT}"):
        run(raw, tmp_path, data, suffix="csv")


def test_files_of_one_table_may_differ_in_the_type_of_the_numbers(tmp_path: Path) -> None:
    raw = log_with_vectors()
    half, types = len(raw["items"]) // 2, (pa.list_(pa.float64()), pa.list_(pa.float32(), 3))
    (tmp_path / "raw" / "items").mkdir(parents=True)
    for number, type_ in enumerate(types):
        part = raw["items"][number * half : (number + 1) * half if number == 0 else None]
        table = pa.Table.from_pylist(part)
        column = pa.array([row["image"] for row in part], type_)
        table = table.set_column(table.column_names.index("image"), "image", column)
        pq.write_table(table, tmp_path / "raw" / "items" / f"{number}.parquet")
    items = raw.pop("items")
    files = RawLog(items=RawTable(path="items"), **{name: RawTable(path=f"{name}.parquet") for name in raw})
    run(raw, tmp_path, DataConfig(**DATA, raw=files))
    of_items = {as_id(item["item_id"]): item["image"] for item in items}
    for row in labelled_rows(tmp_path):
        assert images(tmp_path, row["candidate_item_id"]) == [of_items[item] for item in row["candidate_item_id"]]


def test_vectors_of_items_may_be_kept_in_half_precision(tmp_path: Path) -> None:
    raw = log_with_vectors()
    data = DataConfig(**SMALL, columns={"items": {"image": {"vector": {"width": 3, "dtype": "float16"}}}})
    run(raw, tmp_path, data)
    assert {path.name for path in (tmp_path / "out" / ITEM_VECTORS).iterdir()} == {"item_id.int64", "image.float16x3"}
    of_items = {as_id(item["item_id"]): item["image"] for item in raw["items"]}
    found = images(tmp_path, list(of_items), data)
    for image, exact in zip(found, of_items.values(), strict=True):
        assert (image is None) == (exact is None)
        assert image is None or exact is None or image == pytest.approx(exact, rel=1e-3)
    raw["items"][1]["image"] = [1.0, 7e4, 0.0]
    expected = (
        r"column 'image', row 2: a list of 3, \[1.0, 70000.0, 0.0\]; expected a list of 3 numbers in -65504..65504, no null"
    )
    with pytest.raises(RawLogError, match=expected):
        run(raw, tmp_path / "b", data)


def test_samples_that_repeat_vectors_are_refused_by_their_version(tmp_path: Path) -> None:
    run(log_with_vectors(), tmp_path, DataConfig(**DATA))
    path = tmp_path / "out" / "train" / "part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"prectr_samples": b"7"}), path)
    with pytest.raises(ValueError, match=r"sample version 7, this release reads \d+; run `prectr prepare` again"):
        check_schema(pq.read_schema(path), sample_schema(DataConfig(**DATA)), path)


def test_a_vector_of_requests_has_one_value_a_request(tmp_path: Path) -> None:
    raw = log_with_vectors()
    request = next(row["request_id"] for row in raw["impressions"] if row["position"] == 2)
    for place, row in enumerate(row for row in raw["impressions"] if row["request_id"] == request):
        row["context"] = [float(place), 0.1, 0.0, 0.0]
    message = (
        r"belong to one request, \d+, but differ in 'context': a list of 4, \[0.0, 0.1, 0.0, 0.0\] and a list of 4, \[\d.0, "
    )
    with pytest.raises(RawLogError, match=message):
        run(raw, tmp_path, DataConfig(**DATA))
