from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from per_row import RowBatch, RowCollate
from ranks import run_ranks
from sample_files import write_samples

from prectr_torchrec.config.run import RunConfig, validate_config
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.origin import format_rows
from prectr_torchrec.data.reader.reader import SearchReader, agree_on_batches
from prectr_torchrec.data.schema import TOKENIZER, sample_schema

REQUESTS = 150


def make_config(parts: dict[str, Any] | None = None, statistics: list[str] | None = None, **batch: Any) -> RunConfig:
    table = {"rows": 97, "dim": 4}
    return validate_config(
        {
            "name": "reader",
            "data": {"history_length": 6, "peer_length": 4, "requests_per_row_group": 13, "user_attributes": ["city"]},
            "text": {"query_tokens": 4, "title_tokens": 6},
            "batch": {"requests": 8, "candidates": 40, "shuffle_row_groups": 3, **batch},
            "tables": {name: table for name in ("user", "city", "item", "category", "brand", "token")},
            "features": {
                "candidate_brand_id": {"table": "brand"},
                "user_id": {"table": "user"},
                "user_city": {"table": "city"},
                "history_item_id": {"table": "item", "sequence": "history"},
                "peer_item_id": {"table": "item", "sequence": "peer"},
                "candidate_item_id": {"table": "item"},
                "candidate_category_id": {"table": "category", "sequence": "candidate"},
                "candidate_title_tokens": {"table": "token"},
            },
            "model": {"parts": {"statistics": {"whose": statistics or ["user"]}, **(parts or {})}},
        },
        "test",
    )


CONFIG = make_config()
ALL: dict[str, Any] = {"personal": {}, "taste": {"dim": 8}}
PREFERENCE = make_config(ALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_samples(folder, CONFIG.data, requests=REQUESTS)
    write_samples(folder, CONFIG.data, requests=20, split="judgments", files=1)
    write_samples(folder, CONFIG.data, requests=20, split="candidates", files=1)
    return folder


def make_reader(folder: Path, config: RunConfig = CONFIG, split: str = "train", **arguments: Any) -> SearchReader:
    return SearchReader(config, folder, split, folder / TOKENIZER, **arguments)


def requests_of(batch: SearchBatch) -> list[int]:
    return batch["request_id"][batch.request_weight > 0].tolist()


def sample_rows(folder: Path, split: str = "train") -> dict[int, dict[str, Any]]:
    paths = sorted((folder / split).glob("*.parquet"))
    return {row["request_id"]: row for path in paths for row in pq.read_table(path).to_pylist()}


def assert_equal(batch: SearchBatch, expected: SearchBatch) -> None:
    """That two batches of readers are the same."""
    assert batch.layout == expected.layout
    views = {name: expected[name] for name in expected.layout.places}
    assert_holds(batch, RowBatch(expected.request_features, expected.candidate_features, views, expected.texts))


def assert_holds(batch: SearchBatch, expected: RowBatch) -> None:
    for found, wanted in zip(
        (batch.request_features, batch.candidate_features),
        (expected.request_features, expected.candidate_features),
        strict=True,
    ):
        assert found.keys() == wanted.keys() and found.stride() == wanted.stride()
        assert torch.equal(found.values(), wanted.values()) and torch.equal(found.lengths(), wanted.lengths())
    tensors = {name: batch[name] for name in batch.layout.places}
    for name, found in [*tensors.items(), *batch.texts.items()]:
        wanted = expected.texts[name] if name in batch.texts else expected.views[name]
        assert found.dtype == wanted.dtype and found.shape == wanted.shape, name
        assert torch.equal(found.nan_to_num(-7), wanted.nan_to_num(-7)), name


@pytest.mark.parametrize("config", [CONFIG, PREFERENCE], ids=["plain", "preference"])
@pytest.mark.parametrize(("split", "shuffle"), [("train", False), ("train", True), ("judgments", True), ("candidates", False)])
def test_batches_equal_those_built_row_by_row(folder: Path, split: str, shuffle: bool, config: RunConfig) -> None:
    rows, collate = sample_rows(folder, split), RowCollate(config, folder / TOKENIZER, 8, 40)
    for batch in make_reader(folder, config, split=split, shuffle=shuffle).epoch(0):
        assert_holds(batch, collate([rows[request] for request in requests_of(batch)]))


@pytest.mark.parametrize(
    "config",
    [
        PREFERENCE.model_copy(update={"data": CONFIG.data.model_copy(update={"history_length": 2, "peer_length": 1})}),
        PREFERENCE.model_copy(update={"data": CONFIG.data.model_copy(update={"history_length": 0, "peer_length": 0})}),
        CONFIG.model_copy(update={"features": {}, "tables": {}}),
        make_config(requests=1, candidates=9),
        make_config(requests=200, candidates=2000),
        make_config(ALL, requests=1, candidates=9),
        make_config(ALL, requests=200, candidates=2000),
        make_config({"personal": {"peers": False}}),
        make_config({"personal": {"own": False}}),
        make_config({"taste": {"dim": 4}}),
        make_config(statistics=["group"]),
    ],
    ids=[
        "shorter histories than prepared",
        "no histories",
        "no features",
        "one request",
        "all in one batch",
        "preference, one request",
        "preference, all in one batch",
        "own",
        "peers",
        "taste",
        "group",
    ],
)
def test_batches_equal_those_built_row_by_row_in_special_shapes(folder: Path, config: RunConfig) -> None:
    rows = sample_rows(folder)
    collate = RowCollate(config, folder / TOKENIZER, config.batch.requests, config.batch.candidates)
    for batch in make_reader(folder, config, shuffle=True).epoch(0):
        assert_holds(batch, collate([rows[request] for request in requests_of(batch)]))


@pytest.mark.parametrize("config", [CONFIG, PREFERENCE], ids=["plain", "preference"])
def test_batches_of_samples_with_predicted_levels_equal_those_built_row_by_row(tmp_path: Path, config: RunConfig) -> None:
    write_samples(tmp_path, CONFIG.data, requests=60, predicted=True)
    rows, collate = sample_rows(tmp_path), RowCollate(config, tmp_path / TOKENIZER, 8, 40, predicted=True)
    for batch in make_reader(tmp_path, config, shuffle=True).epoch(0):
        assert_holds(batch, collate([rows[request] for request in requests_of(batch)]))
        chance = batch["candidate_predicted"].sum(1)
        assert set(chance.tolist()) == {0.0, 1.0} and not chance[batch["candidate_level"] > 0].any()


NEW = ["user_examined", "group_shown", "peer_relevance", "history_title"]


@pytest.mark.parametrize(
    ("config", "read"),
    [
        (CONFIG, []),
        (PREFERENCE, NEW),
        (make_config({"personal": {"peers": False}}), ["user_examined"]),
        (make_config({"personal": {"own": False}}), ["user_examined", "group_shown", "peer_relevance"]),
        (make_config({"taste": {"dim": 4}}), ["history_title"]),
        (make_config(statistics=["group", "user"]), ["user_examined", "group_shown"]),
    ],
    ids=["plain", "preference", "own", "peers", "taste", "group"],
)
def test_columns_that_the_model_does_not_use_are_not_read(folder: Path, config: RunConfig, read: list[str]) -> None:
    assert [name for name in NEW if name in make_reader(folder, config).columns] == read


def test_the_title_of_an_event_is_the_one_that_its_index_points_to(folder: Path) -> None:
    rows, tokens = sample_rows(folder), RowCollate(PREFERENCE, folder / TOKENIZER, 8, 40).tokens
    for batch in make_reader(folder, PREFERENCE, shuffle=True).epoch(0):
        for row, request in enumerate(requests_of(batch)):
            titles = rows[request]["history_title"]
            index = batch["history_title_index"][row]
            assert batch.texts["history_title"][index[: len(titles)]].tolist() == tokens(titles, 6)
            assert not index[len(titles) :].any()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_each_request_comes_once_over_all_ranks_and_workers(folder: Path, workers: int, world_size: int) -> None:
    config = make_config(workers=workers)
    readers = [make_reader(folder, config, shuffle=True, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(reader.epoch(0)) for reader in readers]
    assert [len(b) for b in batches] == [reader.num_batches(0) for reader in readers]
    seen = Counter(request for rank in batches for batch in rank for request in requests_of(batch))
    assert seen == Counter(list(sample_rows(folder)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_what_two_ranks_left_of_an_epoch_is_read_once_by_three(folder: Path, workers: int) -> None:
    config = make_config(workers=workers)
    seen: Counter[int] = Counter()
    for rank in range(2):
        reader = make_reader(folder, config, shuffle=True, rank=rank, world_size=2)
        seen.update(request for batch in islice(reader.epoch(1), 5) for request in requests_of(batch))
    for rank in range(3):
        reader = make_reader(folder, config, shuffle=True, rank=rank, world_size=3)
        reader.go_on_after(1, [reader.batches_done(1, 5, world_size=2)])
        seen.update(request for batch in reader.epoch(1) for request in requests_of(batch))
    assert seen == Counter(list(sample_rows(folder)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "preference"), [(0, {}), (0, ALL), (2, ALL), (3, {})])
def test_resuming_anywhere_gives_the_same_remaining_batches(folder: Path, workers: int, preference: dict[str, Any]) -> None:
    config = make_config(preference, workers=workers)
    for rank in range(2):
        full = list(make_reader(folder, config, shuffle=True, rank=rank, world_size=2).epoch(1))
        for start in range(0, len(full) + 1, 1 if workers == 0 else 3):
            rest = list(make_reader(folder, config, shuffle=True, rank=rank, world_size=2).epoch(1, start))
            assert len(rest) == len(full) - start
            for batch, expected in zip(rest, full[start:], strict=True):
                assert_equal(batch, expected)


def test_workers_start_anew_after_an_epoch_left_early(folder: Path) -> None:
    reader, other = (
        make_reader(folder, make_config(workers=2), shuffle=True),
        make_reader(folder, make_config(workers=2), shuffle=True),
    )
    next(reader.epoch(0))
    for epoch in (1, 2):
        for batch, expected in zip(reader.epoch(epoch), other.epoch(epoch), strict=True):
            assert_equal(batch, expected)


def test_workers_that_are_spawned_as_beside_a_gpu_read_what_forked_ones_read(folder: Path, monkeypatch: Any) -> None:
    config = make_config(ALL, workers=1)
    forked = list(make_reader(folder, config, shuffle=True).epoch(1))
    monkeypatch.setattr("prectr_torchrec.data.reader.reader._start_method", lambda: "spawn")
    for batch, expected in zip(make_reader(folder, config, shuffle=True).epoch(1), forked, strict=True):
        assert_equal(batch, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_nothing_from_the_models_random_numbers(folder: Path, workers: int) -> None:
    before = torch.get_rng_state()
    assert list(make_reader(folder, make_config(workers=workers), shuffle=True).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_skipped_windows_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make_reader(folder, shuffle=True)
    loaded = []
    load = reader._load
    monkeypatch.setattr(reader, "_load", lambda window: (loaded.append(window), load(window))[1])
    list(reader.epoch(0, reader.num_batches(0) - 1))
    assert loaded == [reader._plan(0, 0).windows[-1]]


@pytest.mark.parametrize("config", [CONFIG, PREFERENCE], ids=["plain", "preference"])
def test_a_dry_rank_feeds_empty_batches(folder: Path, config: RunConfig) -> None:
    reader = make_reader(folder, config)
    batches = list(reader.epoch(0, num_batches=reader.num_batches(0) + 2))
    assert len(batches) == reader.num_batches(0) + 2
    collate = RowCollate(config, folder / TOKENIZER, 8, 40)
    for batch in batches[-2:]:
        assert_holds(batch, collate([]))


def test_an_empty_batch_still_has_one_text_of_each_kind(folder: Path) -> None:
    reader_end = make_reader(folder).num_batches(0)
    (batch,) = make_reader(folder).epoch(0, reader_end, reader_end + 1)
    assert batch.texts["query"].tolist() == [[2, 0, 0, 0]] and batch.texts["title"].tolist() == [[2, 0, 0, 0, 0, 0]]
    assert batch.request_weight.sum() == 0 and batch.candidate_weight.sum() == 0


def test_a_forgetful_token_cache_changes_no_batch(folder: Path) -> None:
    forgetful, reader = make_reader(folder, PREFERENCE, shuffle=True), make_reader(folder, PREFERENCE, shuffle=True)
    for cache in forgetful._builder._caches.values():
        cache._capacity = 1
    for batch, expected in zip(forgetful.epoch(0), reader.epoch(0), strict=True):
        assert_equal(batch, expected)


def test_shuffling_keeps_every_request_whole_and_unshuffled_keeps_the_files_order(folder: Path) -> None:
    in_order = [request for batch in make_reader(folder).epoch(0) for request in requests_of(batch)]
    shuffled = [request for batch in make_reader(folder, shuffle=True).epoch(0) for request in requests_of(batch)]
    assert in_order == list(sample_rows(folder))
    assert shuffled != in_order and sorted(shuffled) == sorted(in_order)


def test_files_with_text_dictionaries_too_large_for_parquet_read_the_same(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for path in (folder / "train").glob("*.parquet"):
        pq.write_table(
            pq.read_table(path),
            tmp_path / "train" / path.name,
            row_group_size=13,
            dictionary_pagesize_limit=50,
            data_page_size=100,
        )
    other = SearchReader(CONFIG, tmp_path, "train", folder / TOKENIZER)
    for batch, expected in zip(other.epoch(0), make_reader(folder).epoch(0), strict=True):
        assert_equal(batch, expected)


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


def test_the_candidates_argument_replaces_the_configurations(folder: Path) -> None:
    batch = next(make_reader(folder, make_config(candidates=3), candidates=50).epoch(0))
    assert batch["candidate_click"].shape == (50,)


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
    valid = "user_id, user_city, query_id, group_id, history_item_id, .*, candidate_brand_id, candidate_title_tokens"
    with pytest.raises(ValueError, match=rf"features.{name}: this sample column holds no ids \(valid: {valid}\)"):
        make_reader(folder, RunConfig.model_validate(tree))


def test_title_tokens_cannot_share_a_table_with_requests(folder: Path) -> None:
    tree = CONFIG.model_dump()
    tree["features"]["candidate_title_tokens"] = {"table": "user"}
    del tree["tables"]["token"]
    with pytest.raises(ValueError, match=r"features.candidate_title_tokens: table 'user' also serves sequences or requests"):
        make_reader(folder, RunConfig.model_validate(tree))


def test_ranks_stop_together_and_lose_nothing(folder: Path) -> None:
    output = run_ranks(2, "data.reader.reader_worker:print_agreed_batches", folder=folder, config=CONFIG.model_dump(mode="json"))
    assert "rank 0: 75 of its own, 75 batches, 75 requests" in output
    assert "rank 1: 19 of its own, 75 batches, 75 requests" in output


def test_without_a_process_group_a_rank_agrees_with_itself() -> None:
    assert agree_on_batches(7) == 7


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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_tells_its_files_and_rows(folder: Path, workers: int) -> None:
    reader = make_reader(folder, make_config(workers=workers), rank=1, world_size=2, shuffle=True)
    tables = {path: pq.read_table(path, columns=["request_id"])["request_id"].to_pylist() for path in folder.glob("train/*")}
    for number, batch in enumerate(reader.epoch(1, num_batches=reader.num_batches(1) + 1)):
        assert [tables[path][row] for path, row in reader.rows(1, number)] == requests_of(batch)


def test_rows_are_written_as_runs() -> None:
    rows = [(Path("b"), 4), (Path("a"), 7), (Path("a"), 3), (Path("a"), 2), (Path("a"), 1)]
    assert format_rows(rows) == "a rows 1-3, 7; b row 4"
