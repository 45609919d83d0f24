"""Vectors of items in a file of their own: looked up by id, and brought by the reader as if samples had them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_files import write_counted_tokenizer, write_samples
from small_run import COLUMNS, small_config

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.item_vectors import ITEM_VECTORS, MAPPED, ItemVectors
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.models import build_model
from prectr_torchrec.system.errors import ConfigError

IDS = np.array([-5, 3, 8, 2**62], np.int64)
VALUES = np.array([[1, 2], [3, 4], [np.nan, np.nan], [5, 6]], np.float32)


def write(folder: Path, dtype: str = "float32", ids: np.ndarray = IDS, values: np.ndarray = VALUES) -> Path:
    folder.mkdir(exist_ok=True)
    ids.tofile(folder / "item_id.int64")
    values.astype(dtype).tofile(folder / f"image.{dtype}x2")
    return folder


def config(**batch: int) -> RunConfig:
    return past_config({"width": 4}, batch=batch)


def past_config(image: dict[str, object], **sections: dict[str, object]) -> RunConfig:
    columns = {**COLUMNS, "items": {**COLUMNS["items"], "image": {"vector": image}}}
    return small_config(data={"columns": columns}, **sections)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_those_of_the_ids_and_missing_where_there_are_none(tmp_path: Path, dtype: str) -> None:
    vectors = ItemVectors(write(tmp_path, dtype), {"image": 2})
    found = vectors.rows("image", np.array([2**62, 7, 3, 8, 3, -5, 2**63 - 1, -(2**63)]))
    none = [np.nan, np.nan]
    np.testing.assert_array_equal(found, np.array([[5, 6], none, [3, 4], none, [3, 4], [1, 2], none, none], np.float32))
    assert found.dtype == np.float32 and vectors.rows("image", np.zeros(0, np.int64)).shape == (0, 2)


def test_what_comes_with_an_item_wins_over_what_is_known_of_it(tmp_path: Path) -> None:
    vectors = ItemVectors(write(tmp_path), {"image": 2})
    given = np.array([[9, 9], [np.nan, np.nan], [np.nan, np.nan]], np.float32)
    found = vectors.filled("image", given, np.array([3, -5, 4]))
    np.testing.assert_array_equal(found, np.array([[9, 9], [1, 2], [np.nan, np.nan]], np.float32))
    assert np.isnan(given[1]).all()


def test_rows_of_a_large_file_are_read_without_holding_it(tmp_path: Path) -> None:
    count, width = MAPPED // 256 + 1, 64
    np.arange(count, dtype=np.int64).tofile(tmp_path / "item_id.int64")
    with (tmp_path / f"image.float32x{width}").open("wb") as file:  # sparse
        file.truncate(count * width * 4)
        for row in (7, count - 1):
            file.seek(row * width * 4)
            file.write(np.full(width, row, np.float32).tobytes())
    vectors = ItemVectors(tmp_path, {"image": width})
    found = vectors.rows("image", np.array([count - 1, 7, 8, count, 7]))
    assert found[[0, 1, 2, 4], :1].ravel().tolist() == [count - 1, 7, 0, 7] and np.isnan(found[3]).all()


def test_a_log_without_items_has_no_vectors(tmp_path: Path) -> None:
    vectors = ItemVectors(write(tmp_path, ids=IDS[:0], values=VALUES[:0]), {"image": 2})
    assert np.isnan(vectors.rows("image", np.array([1, 2]))).all()


def test_another_process_maps_the_files_anew(tmp_path: Path) -> None:
    sent = pickle.dumps(ItemVectors(write(tmp_path), {"image": 2}))
    assert len(sent) < 500
    np.testing.assert_array_equal(pickle.loads(sent).rows("image", IDS), VALUES)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=r"no file image\.float32x3, which has the vectors of items; run `prectr prepare` again"):
        ItemVectors(tmp_path, {"image": 3})
    VALUES[:3].tofile(tmp_path / "image.float32x2")
    with pytest.raises(ValueError, match="3 vectors of 'image' for 4 items; copy the folder anew"):
        ItemVectors(tmp_path, {"image": 2})
    (tmp_path / "image.float32x2").write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"image\.float32x2: 5 bytes are no whole number of rows of 8"):
        ItemVectors(tmp_path, {"image": 2})


def expected(batch: SearchBatch, vectors: ItemVectors) -> torch.Tensor:
    rows = torch.from_numpy(vectors.rows("image", batch["candidate_item_id"].numpy()))
    return torch.where(batch.candidate_weight.unsqueeze(1) > 0, rows, torch.nan)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_reader_brings_each_candidates_vector(tmp_path: Path, workers: int) -> None:
    run = config(workers=workers)
    table = write_samples(tmp_path, run.data, requests=60)
    assert "candidate_image" not in table.column_names
    vectors = ItemVectors.of(run.data, tmp_path / ITEM_VECTORS)
    reader = SearchReader(run, tmp_path, "train", tmp_path / TOKENIZER, shuffle=True)
    assert "candidate_image" not in reader.columns
    batches = list(reader.epoch(0))
    for batch in batches:
        torch.testing.assert_close(batch["candidate_image"], expected(batch, vectors), equal_nan=True, rtol=0, atol=0)
    missing = torch.cat([batch["candidate_image"][batch.candidate_weight > 0, 0].isnan() for batch in batches])
    assert 0.1 < missing.float().mean() < 0.6
    resumed = list(reader.epoch(0, start=3))
    assert all(
        a["candidate_image"].nan_to_num().equal(b["candidate_image"].nan_to_num())
        for a, b in zip(batches[3:], resumed, strict=True)
    )


def test_a_folder_without_them_is_refused(tmp_path: Path) -> None:
    run = config()
    write_samples(tmp_path, run.data, requests=20)
    (tmp_path / ITEM_VECTORS / "image.float32x4").unlink()
    with pytest.raises(ValueError, match=r"item_vectors: no file image\.float32x4, which has the vectors of items; run `prectr"):
        SearchReader(run, tmp_path, "train", tmp_path / TOKENIZER)


def test_past_events_have_the_vectors_of_their_items_where_a_part_reads_them(tmp_path: Path) -> None:
    image: dict[str, object] = {"width": 4, "history": True}
    plain, own, both = (
        past_config(image, model={"parts": {"vector_taste": taste}}) for taste in (None, {}, {"whose": ["own", "peers"]})
    )
    table = write_samples(tmp_path, plain.data, requests=60)
    assert "history_image" not in table.column_names
    vectors = ItemVectors.of(plain.data, tmp_path / ITEM_VECTORS)
    for run, families in ((plain, []), (own, ["history"]), (both, ["history", "peer"])):
        reader = SearchReader(run, tmp_path, "train", tmp_path / TOKENIZER)
        rows = {row["request_id"]: row for row in table.to_pylist()}
        for batch in reader.epoch(0):
            assert [family for family in ("history", "peer") if f"{family}_image" in batch.layout.places] == families
            for family in families:
                width = batch[f"{family}_image"].shape[1]
                for number, request in enumerate(batch["request_id"].tolist()):
                    items = rows[request][f"{family}_item_id"][-width:] if request >= 0 else []
                    found = batch[f"{family}_image"][number]
                    wanted = torch.from_numpy(vectors.rows("image", np.array(items, np.int64)))
                    torch.testing.assert_close(found[: len(items)], wanted, equal_nan=True, rtol=0, atol=0)
                    assert found[len(items) :].eq(0).all()


def test_only_vectors_of_items_are_kept_for_past_events(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"columns\.queries\.intent\.vector\.history: past events have vectors of their items"):
        small_config(data={"columns": {**COLUMNS, "queries": {"intent": {"vector": {"width": 2, "history": True}}}}})
    run = past_config({"width": 4}, model={"parts": {"vector_taste": {}}})
    with pytest.raises(ConfigError, match=r"model\.parts\.vector_taste: needs a vector of data.columns.items that past"):
        build_model(run, write_counted_tokenizer(tmp_path))
