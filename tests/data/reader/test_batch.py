from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from sample_files import write_samples
from torchrec import KeyedJaggedTensor

from prectr_torchrec.config.run import validate_config
from prectr_torchrec.data.columns import COUNTS
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER

CONFIG = validate_config(
    {
        "name": "batch",
        "data": {"history_length": 3, "peer_length": 2},
        "text": {"query_tokens": 4, "title_tokens": 5},
        "batch": {"requests": 4, "candidates": 12},
        "tables": {"item": {"rows": 50, "dim": 4}, "brand": {"rows": 20, "dim": 4}},
        "features": {
            "history_item_id": {"table": "item", "sequence": "history"},
            "peer_item_id": {"table": "item", "sequence": "peer"},
            "candidate_item_id": {"table": "item", "sequence": "candidate"},
            "candidate_brand_id": {"table": "brand"},
        },
        "model": {"parts": {"personal": {}, "taste": {"dim": 4}}},
    },
    "test",
)


def read(folder: Path, split: str, requests: int) -> list[SearchBatch]:
    """All batches, one of padding alone at the end. Requests of `judgments` have no history."""
    write_samples(folder, CONFIG.data, requests=requests, split=split, files=1)
    reader = SearchReader(CONFIG, folder, split, folder / TOKENIZER)
    return list(reader.epoch(0, num_batches=reader.num_batches(0) + 1))


@pytest.fixture(params=["full", "one request", "padding alone", "empty histories"])
def batch(request: pytest.FixtureRequest, tmp_path: Path) -> SearchBatch:
    cases = {"full": ("train", 20, 0), "one request": ("train", 1, 0), "padding alone": ("train", 1, -1)}
    cases["empty histories"] = ("judgments", 4, 0)
    split, requests, place = cases[request.param]
    return read(tmp_path, split, requests)[place]


def tensors(batch: SearchBatch) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        jagged = isinstance(value, KeyedJaggedTensor)
        found |= (
            {f"{field.name}.values": value.values(), f"{field.name}.lengths": value.lengths()} if jagged else {field.name: value}
        )
    return found


def assert_same(found: SearchBatch, expected: SearchBatch) -> None:
    torch.testing.assert_close(tensors(found), tensors(expected), rtol=0, atol=0, equal_nan=True)
    for name in ("request_features", "candidate_features"):
        assert getattr(found, name).keys() == getattr(expected, name).keys()
        assert getattr(found, name).stride() == getattr(expected, name).stride()


@pytest.mark.parametrize(
    "move", [lambda b: b.to(torch.device("cpu")), lambda b: b.to(device=torch.device("cpu"), non_blocking=True)]
)
def test_to_keeps_everything(batch: SearchBatch, move: Callable[[SearchBatch], SearchBatch]) -> None:
    assert_same(move(batch), batch)


def test_to_moves_every_tensor(batch: SearchBatch) -> None:
    assert {tensor.device.type for tensor in tensors(batch.to(device=torch.device("meta"))).values()} == {"meta"}


def test_a_batch_survives_pickling(batch: SearchBatch) -> None:
    assert_same(pickle.loads(pickle.dumps(batch)), batch)


def test_shapes_are_the_documented_ones(batch: SearchBatch) -> None:
    R, C, K, L, M = 4, 12, 4, 3, 2
    Q, T = len(batch.query_tokens), len(batch.title_tokens)
    requests = ("request_id", "request_weight", "user_id", "user_events", "user_query_events", "query_events", "history_lengths")
    expected = {name: (R,) for name in (*requests, "query_index")}
    expected |= {f"{who}_{what}": (R, K + 1) for who in ("user", "query", "group") for what in COUNTS}
    expected |= {f"history_{name}": (R, L) for name in ("level", "click", "position", "age")}
    expected |= {
        "history_title_tokens": (len(batch.history_title_tokens), 5),
        "history_title_index": (R, L),
        "peer_lengths": (R,),
    }
    expected |= {f"peer_{name}": (R, M) for name in ("level", "click", "position", "in_group", "age")}
    expected |= {"query_tokens": (Q, 4), "title_tokens": (T, 5)}
    expected |= {"history_predicted": (R, 0, K), "peer_predicted": (R, 0, K), "candidate_predicted": (C, K)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors(batch).items() if "features" not in name}
    assert {name: shape for name, shape in found.items() if name in expected} == expected
    assert {shape for name, shape in found.items() if name not in expected} == {(C,)}
    assert batch.request_features.stride() == R and batch.candidate_features.stride() == C
    assert Q >= 1 and T >= 1


def test_padding_comes_last_and_weighs_nothing(batch: SearchBatch) -> None:
    requests, candidates = int(batch.request_weight.sum()), int(batch.candidate_weight.sum())
    assert batch.request_weight.tolist() == [1] * requests + [0] * (4 - requests)
    assert batch.candidate_weight.tolist() == [1] * candidates + [0] * (12 - candidates)
    assert batch.click_weight[candidates:].sum() == 0 and batch.click[candidates:].sum() == 0
    assert batch.request_id[requests:].tolist() == [-1] * (4 - requests)
    assert batch.candidate_request[candidates:].tolist() == [3] * (12 - candidates)
    assert batch.relevance[candidates:].isnan().all() and batch.level[candidates:].sum() == 0
    assert batch.history_lengths[requests:].sum() == batch.peer_lengths[requests:].sum() == 0
    assert batch.query_index[requests:].sum() == 0 and batch.title_index[candidates:].sum() == 0


def test_jagged_lengths_agree_with_the_dense_fields(batch: SearchBatch) -> None:
    by_key = batch.request_features.to_dict()
    counts = torch.bincount(batch.candidate_request[batch.candidate_weight > 0], minlength=4)
    assert torch.equal(by_key["history_item_id"].lengths(), batch.history_lengths)
    assert torch.equal(by_key["peer_item_id"].lengths(), batch.peer_lengths)
    assert torch.equal(by_key["candidate_item_id"].lengths(), counts)
    assert torch.equal(batch.candidate_features.lengths(), batch.candidate_weight.long())


def test_unlabelled_candidates_have_no_click_weight(tmp_path: Path) -> None:
    batch = read(tmp_path, "candidates", 4)[0]
    assert batch.candidate_weight.sum() > 0
    assert batch.click_weight.sum() == 0 and batch.level.sum() == 0 and batch.relevance.isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory and streams need a GPU")
def test_a_pinned_batch_moves_to_the_gpu_and_back(batch: SearchBatch) -> None:
    pinned = batch.pin_memory()
    assert all(tensor.is_pinned() or tensor.numel() == 0 for tensor in tensors(pinned).values())
    moved = pinned.to(device=torch.device("cuda"), non_blocking=True)
    moved.record_stream(torch.cuda.current_stream())
    assert_same(moved.to(device=torch.device("cpu")), batch)
