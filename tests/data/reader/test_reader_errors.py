"""What a reader refuses, by the name of the file, the column or the setting."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_files import write_samples
from small_readers import (
    CONFIG,
    make_reader,
)

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.schema import sample_schema


def rewrite(folder: Path, change: Any) -> Path:
    """Replaces the rows of the first file of the train split by `change(table)`; returns its path."""
    write_samples(folder, CONFIG.data, requests=30)
    path = folder / "train" / "part-00000.parquet"
    pq.write_table(change(pq.read_table(path)), path, row_group_size=4)
    return path


def test_a_request_that_fits_into_no_batch_is_named(folder: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"part-00000.parquet: row \d+: a request of \d candidates .* batch of 3; set batch.candidates to at least 9",
    ):
        make_reader(folder, candidates=3)


def test_a_missing_split_is_named_with_those_there(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'test' here \(found: candidates, judgments, train\)"):
        make_reader(folder, split="test")


def test_a_split_without_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"train: no .parquet file in this split"):
        make_reader(tmp_path)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    write_samples(tmp_path, CONFIG.data, requests=30)
    (tmp_path / "train" / "part-00001.parquet").write_text("request_id,query\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"part-00001.parquet: not a Parquet file"):
        make_reader(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = rewrite(tmp_path, lambda table: table)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"part-00000.parquet: not a Parquet file"):
        make_reader(tmp_path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda table: table.drop_columns("history_age"))
    with pytest.raises(ValueError, match=r"part-00000.parquet: column 'history_age' is missing"):
        make_reader(tmp_path)


def test_files_of_another_version_are_refused(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda table: table.replace_schema_metadata(None))
    with pytest.raises(ValueError, match=r"part-00000.parquet: sample version none"):
        make_reader(tmp_path)


def replace_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    schema = sample_schema(CONFIG.data)
    return table.set_column(schema.get_field_index(name), schema.field(name), pa.array(values, schema.field(name).type))


def test_nulls_where_none_may_be_are_named(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda table: replace_column(table, "user_id", [None, *range(table.num_rows - 1)]))
    with pytest.raises(ValueError, match=r"part-00000.parquet, row group 0: column 'user_id' has nulls"):
        list(make_reader(tmp_path).epoch(0))


def test_lists_of_unequal_lengths_are_named(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda table: replace_column(table, "candidate_position", [[1]] * table.num_rows))
    with pytest.raises(ValueError, match=r"part-00000.parquet.*: lists of column 'candidate_position' differ in length"):
        list(make_reader(tmp_path).epoch(0))


def test_a_wrong_count_of_candidates_is_named(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda table: replace_column(table, "num_candidates", [1] * table.num_rows))
    with pytest.raises(ValueError, match=r"part-00000.parquet.*: num_candidates is not the length of the candidate_\* lists"):
        list(make_reader(tmp_path).epoch(0))


def test_a_feature_without_a_column_is_named(folder: Path) -> None:
    tree = CONFIG.model_dump()
    tree["features"]["candidate_brnd_id"] = {"table": "brand"}
    with pytest.raises(ValueError, match=r"features.candidate_brnd_id: .* \(did you mean 'candidate_brand_id'\?\)"):
        make_reader(folder, RunConfig.model_validate(tree))


@pytest.mark.parametrize("name", ["candidate_click", "candidate_position", "history_age", "request_id", "timestamp", "query"])
def test_columns_that_hold_no_ids_are_refused_as_features(folder: Path, name: str) -> None:
    tree = CONFIG.model_dump()
    tree["features"][name] = {"table": "brand"}
    valid = "user_id, user_city, query_id, group_id, .*, history_item_id, .*, candidate_brand_id, .*"
    with pytest.raises(ValueError, match=rf"features.{name}: this sample column holds no ids \(valid: {valid}\)"):
        make_reader(folder, RunConfig.model_validate(tree))


def test_title_tokens_cannot_share_a_table_with_requests(folder: Path) -> None:
    tree = CONFIG.model_dump()
    tree["features"]["candidate_title_tokens"] = {"table": "user"}
    del tree["tables"]["token"]
    with pytest.raises(ValueError, match=r"features.candidate_title_tokens: table 'user' also serves sequences or requests"):
        make_reader(folder, RunConfig.model_validate(tree))


def test_a_reader_that_hangs_is_named_and_ends_the_process(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    script = Path(__file__).with_name("hung_reader.py")
    done = subprocess.run([sys.executable, script, tmp_path / "data"], capture_output=True, text=True, timeout=120)
    cases = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert cases.keys() == {"opens_the_split", "reads_an_epoch", "reads_an_epoch_in_a_reader_process"}, done.stderr
    for case, said in cases.items():
        assert said.startswith("exit code 1: ") and "note: waiting for 0.2 s for " in said, said
        assert f"{case}/train/part-00001.parquet" in said and "nothing came for 2 s (train.reader_timeout)" in said


def test_a_damaged_page_is_found_and_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    path = tmp_path / "data" / "train" / "part-00001.parquet"
    flip_a_byte(path, row_group=2, column="query_events")
    with pytest.raises(ValueError, match=r"part-00001.parquet, row group 2: not a Parquet file, or a damaged one: .*CRC"):
        list(make_reader(tmp_path / "data").epoch(0))


def flip_a_byte(path: Path, row_group: int, column: str) -> None:
    """In the data of one column, which stays readable: only the page's checksum can tell."""
    pq.write_table(pq.read_table(path), path, row_group_size=13, compression="none", write_page_checksum=True)
    chunks = [pq.read_metadata(path).row_group(row_group).column(i) for i in range(pq.read_metadata(path).num_columns)]
    (chunk,) = [chunk for chunk in chunks if chunk.path_in_schema == column]
    damaged = bytearray(path.read_bytes())
    damaged[chunk.dictionary_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(damaged)


def test_a_damaged_name_within_the_list_of_a_text_is_named(folder: Path, tmp_path: Path) -> None:
    """The column's own name is right, so that the check of the columns sees nothing."""
    shutil.copytree(folder, tmp_path / "data")
    path = tmp_path / "data" / "train" / "part-00001.parquet"
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    element = data.index(b"element", data.index(b"candidate_title", footer))
    path.write_bytes(data[:element] + b"elemenu" + data[element + len(b"element") :])
    with pytest.raises(
        ValueError, match=r"part-00001.parquet, row group 0: not a Parquet file, or a damaged one: .*candidate_title"
    ):
        list(make_reader(tmp_path / "data").epoch(0))
