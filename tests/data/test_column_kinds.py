"""The sides of a column agree: what is written is read, what a batch has is of the shape told, and a request's value fits."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from prectr_torchrec.config.data import DataConfig, Levels
from prectr_torchrec.data.column_kinds import (
    Flag,
    Grade,
    Id,
    Kind,
    Label,
    Measure,
    Number,
    Position,
    Text,
    Texts,
    Vector,
    Whole,
)
from prectr_torchrec.data.columns import sample_columns
from prectr_torchrec.data.counted_kinds import Counter, Distribution
from prectr_torchrec.data.levels import pack_levels
from prectr_torchrec.data.schema import sample_schema

SURE = pack_levels(np.eye(4))
VALUES: list[tuple[Kind, np.ndarray]] = [
    (Id(), np.array([0, -(2**63), 2**63 - 1])),
    (Number(), np.array([0, 0.5, 3], np.float32)),
    (Measure(), np.array([-2.5, np.nan, 1e30], np.float32)),
    (Vector(2), np.array([[1, -1], [np.nan, np.nan], [0, 1e30]], np.float32)),
    (Whole(), np.array([0, 2**31 - 1], np.int32)),
    (Whole(1, 2**62), np.array([1, 2**62])),
    (Position(), np.array([0, 7], np.int16)),
    (Flag(), np.array([0, 1], np.int8)),
    (Label(), np.array([0, 1, -1], np.int8)),
    (Grade(), np.array([1.0, np.nan, 2.5], np.float32)),
    (Distribution(4, unless="relevance"), SURE),
    (Counter(4), np.arange(10, dtype=np.float32).reshape(2, 5)),
]


@pytest.mark.parametrize(("kind", "values"), VALUES, ids=[repr(kind) for kind, _ in VALUES])
def test_flat_values_survive_the_way_through_arrow_and_fill_their_views(kind: Kind, values: np.ndarray) -> None:
    array = kind.to_arrow(values)
    assert array.type == kind.arrow and (array.null_count > 0) == (
        kind.nullable and isinstance(kind, Grade | Label | Measure | Vector)
    )
    flat = kind.flat([array, array.slice(1)])
    np.testing.assert_array_equal(flat, np.concatenate([values, values[1:]]))
    beside = {"column": values, "relevance": np.full(len(values), np.nan, np.float32)}
    made = kind.batched("column", beside)
    assert made.keys() == kind.views("column").keys()
    for name, view in kind.views("column").items():
        assert made[name].size == len(values) * int(np.prod(view.shape)), name


def test_texts_of_all_chunks_are_told_from_each_other_once() -> None:
    first, second = pa.array(["a", "b", "a"]), pa.array(["c", "b"]).dictionary_encode()
    texts = Text().flat([first, second])
    assert isinstance(texts, Texts) and texts.distinct == ["a", "b", "c"] and texts.index.tolist() == [0, 1, 0, 2, 1]
    assert texts.take(np.array([3, 0])).index.tolist() == [2, 0]


def test_a_label_is_a_value_and_a_weight() -> None:
    made = Label().batched("cart", {"cart": np.array([1, 0, -1])})
    assert made["cart"].tolist() == [True, False, False] and made["cart_weight"].tolist() == [True, True, False]


def test_a_grade_is_a_level_and_wins_over_a_prediction() -> None:
    grades = np.array([1.0, 3.0, np.nan], np.float32)
    flat = {"relevance": grades, "predicted": SURE[:3]}
    assert Grade(Levels()).batched("relevance", flat)["level"].tolist() == [1, 4, 0]
    predicted = Distribution(4, unless="relevance").batched("predicted", flat)["predicted"]
    assert predicted.tolist() == [[0.0] * 4, [0.0] * 4, [0.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Id("integer"), {"7": 7, "NULL": 0}, "7.5"),
        (Text(), {"'lamp'": "lamp", "NULL": ""}, None),
        (Label(), {"1": 1}, "2"),
        (Position(), {"3": 3, "NULL": None}, "-1"),
        (Grade(), {"2.5": 2.5, "NULL": None}, "7.0"),
        (Number(), {"0.5": 0.5}, "-1.0"),
        (Whole(1, 9), {"9": 9}, "0"),
        (Measure(), {"-0.5": -0.5, "'nan'": None, "NULL": None}, "'inf'"),
        (Measure(0), {"1e30": np.float32(1e30)}, "-1.0"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Kind) else "",
)
def test_the_sql_of_a_raw_value_reads_it_and_finds_what_is_wrong(kind: Kind, good: dict[str, object], bad: str | None) -> None:
    def read(sql: str) -> tuple[object, bool]:
        type_ = "VARCHAR" if isinstance(kind, Text) else "DOUBLE"
        found = kind.raw().read(f"CAST({sql} AS {type_})", type_)
        assert found is not None
        return duckdb.sql(f"SELECT {found[0]}, {found[1]}").fetchall()[0]

    for sql, value in good.items():
        assert read(sql) == (value, False)
    assert bad is None or read(bad)[1] is True


@pytest.mark.parametrize("kind", [Counter(4), Distribution(4, unless="relevance")], ids=["counter", "distribution"])
def test_what_preparation_counts_has_no_raw_column(kind: Kind) -> None:
    with pytest.raises(TypeError, match="no column of a raw log holds these"):
        kind.raw()


def test_every_column_has_a_default_that_its_file_can_hold() -> None:
    data = DataConfig(item_attributes=["brand_id"], user_attributes=["user_age"])
    for column in sample_columns(data):
        field = column.kind.json()
        default = field.read(None) if field.default is None else field.default
        assert pa.array([default], column.kind.arrow).type == column.kind.arrow, column.name
    assert [column.name for column in sample_columns(data)] == sample_schema(data).names
