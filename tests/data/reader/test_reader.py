"""Batches are those built row by row; every request comes once; resuming and sharing change nothing."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from per_row import RowCollate
from ranks import run_ranks
from sample_files import write_samples
from small_readers import (
    ALL,
    CONFIG,
    PREFERENCE,
    assert_equal,
    assert_holds,
    make_config,
    make_reader,
    requests_of,
    sample_rows,
)

from prectr_torchrec.config.reads import Reads
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.origin import format_rows
from prectr_torchrec.data.reader.reader import SearchReader, agree_on_batches
from prectr_torchrec.data.schema import TOKENIZER


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


def test_a_batch_has_what_is_asked_for_and_what_learning_needs_and_no_more(folder: Path) -> None:
    config = CONFIG.model_copy(update={"features": {}, "tables": {}})
    reads = Reads(request=frozenset({"user_shown"}), candidate=frozenset({"shown"}), texts=frozenset({"query"}))
    batch = next(make_reader(folder, config, reads=reads).epoch(0))
    needed = ("item_id", "request", "weight", "click", "click_weight", "position", "relevance", "level", "predicted")
    asked = {"user_shown", "candidate_shown", "query_index"}
    assert set(batch.layout.places) == {"request_id", "user_id", "request_weight", *(f"candidate_{n}" for n in needed), *asked}
    assert list(batch.texts) == ["query"] and not batch.inputs({}, {}).sequences


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
        reader.resume_after(1, [reader.batches_done(1, 5, world_size=2)])
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


def test_the_candidates_argument_replaces_the_configurations(folder: Path) -> None:
    batch = next(make_reader(folder, make_config(candidates=3), candidates=50).epoch(0))
    assert batch["candidate_click"].shape == (50,)


def test_ranks_stop_together_and_lose_nothing(folder: Path) -> None:
    output = run_ranks(2, "data.reader.reader_worker:print_agreed_batches", folder=folder, config=CONFIG.model_dump(mode="json"))
    assert "rank 0: 75 of its own, 75 batches, 75 requests" in output
    assert "rank 1: 19 of its own, 75 batches, 75 requests" in output


def test_without_a_process_group_a_rank_agrees_with_itself() -> None:
    assert agree_on_batches(7) == 7


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_tells_its_files_and_rows(folder: Path, workers: int) -> None:
    reader = make_reader(folder, make_config(workers=workers), rank=1, world_size=2, shuffle=True)
    tables = {path: pq.read_table(path, columns=["request_id"])["request_id"].to_pylist() for path in folder.glob("train/*")}
    for number, batch in enumerate(reader.epoch(1, num_batches=reader.num_batches(1) + 1)):
        assert [tables[path][row] for path, row in reader.rows(1, number)] == requests_of(batch)


def test_rows_are_written_as_runs() -> None:
    rows = [(Path("b"), 4), (Path("a"), 7), (Path("a"), 3), (Path("a"), 2), (Path("a"), 1)]
    assert format_rows(rows) == "a rows 1-3, 7; b row 4"
