"""Titles to encode ahead come from the same kinds of files as a log's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sample_files import write_tokenizer

from prectr_torchrec.data.raw.files import MAX_TEXT
from prectr_torchrec.data.raw.source import RawLogError
from prectr_torchrec.data.tokens import TextTokenizer
from prectr_torchrec.serving.index import _distinct_tokens

TITLES = ["red lamp", "blue, chair", "red lamp", "lamp #2", "a 'big' table"]


def write_parts(table: pa.Table, path: Path) -> None:
    path.mkdir()
    for part in range(2):
        pq.write_table(table.slice(3 * part, 3), path / f"part-{part}.parquet")


def as_bytes(table: pa.Table) -> pa.Table:
    return table.set_column(1, "title", table["title"].cast(pa.binary()))


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "plain.parquet": pq.write_table,
    "dictionary.parquet": lambda table, path: pq.write_table(
        table.set_column(1, "title", table["title"].dictionary_encode()), path
    ),
    "bytes.parquet": lambda table, path: pq.write_table(as_bytes(table), path),
    "items.csv": pyarrow.csv.write_csv,
    "items.parquet": write_parts,
    "title=x": write_parts,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_distinct_titles_in_order(tmp_path: Path, name: str) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    table = pa.table({"item_id": range(6), "title": [*TITLES, None]})
    WRITERS[name](table, tmp_path / name)
    tokenizer = TextTokenizer(tmp_path / "tokenizer")
    expected = tokenizer.encode(list(dict.fromkeys(TITLES)), 8)
    np.testing.assert_array_equal(_distinct_tokens(tmp_path / name, "title", tokenizer, 8), expected)


@pytest.mark.parametrize(
    ("titles", "column", "message"),
    [
        (
            pa.array(TITLES),
            "name",
            "column 'name' is missing; columns there: title$|column 'name' is missing.*columns there: title$",
        ),
        (pa.array(range(5)), "title", "column 'title' is BIGINT; expected text"),
        (pa.array([*TITLES, "x" * 2**23]), "title", f"rows 1 to 6 take [0-9,]+ bytes; expected at most {MAX_TEXT:,} bytes"),
        (
            pa.array([*TITLES, "x" * (MAX_TEXT + 1)]),
            "title",
            f"column 'title', row 6: 'x+'...; expected at most {MAX_TEXT:,} bytes",
        ),
    ],
)
def test_what_is_no_column_of_titles_is_named(tmp_path: Path, titles: pa.Array, column: str, message: str) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    pq.write_table(pa.table({"title": titles}), tmp_path / "items.parquet")
    with pytest.raises(RawLogError, match=message):
        _distinct_tokens(tmp_path / "items.parquet", column, TextTokenizer(tmp_path / "tokenizer"), 8)
