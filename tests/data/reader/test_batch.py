from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sample_files import write_samples
from torchrec import JaggedTensor, KeyedJaggedTensor

from prectr_torchrec.config.reads import COUNTED
from prectr_torchrec.config.run import validate_config
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
    """All that moves with a batch."""
    jagged = {"request_features": batch.request_features, "candidate_features": batch.candidate_features}
    found = {f"{name}.values": ids.values() for name, ids in jagged.items()}
    found |= {f"{name}.lengths": ids.lengths() for name, ids in jagged.items()}
    return {**found, **batch.packed, **batch.texts}


def assert_same(found: SearchBatch, expected: SearchBatch) -> None:
    torch.testing.assert_close(tensors(found), tensors(expected), rtol=0, atol=0, equal_nan=True)
    assert found.layout == expected.layout and found.most_candidates == expected.most_candidates
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


def test_the_host_knows_the_sizes_of_what_has_moved(batch: SearchBatch) -> None:
    counts = batch.request_features["candidate_item_id"].lengths()
    moved = batch.to(device=torch.device("meta"))  # where no value can be asked for
    assert moved.most_candidates == counts.max()
    for name in ("request_features", "candidate_features"):
        lengths = [len(ids.values()) for ids in getattr(batch, name).to_dict().values()]
        assert getattr(moved, name).length_per_key() == lengths


def test_a_batch_survives_pickling(batch: SearchBatch) -> None:
    assert_same(pickle.loads(pickle.dumps(batch)), batch)


def test_shapes_are_the_documented_ones(batch: SearchBatch) -> None:
    R, C, K, L, M = 4, 12, 4, 3, 2
    expected: dict[str, tuple[int, ...]] = {
        name: (R,) for name in ("request_id", "request_weight", "user_id", "history_lengths", "peer_lengths", "query_index")
    }
    expected |= {name: (R, 1) for name in ("user_events", "user_query_events", "query_events")}
    expected |= {f"{who}_{what}": (R, K + 1) for who in ("user", "query", "group") for what in COUNTED}
    for family, events in (("history", L), ("peer", M)):
        expected |= {f"{family}_{name}": (R, events) for name in ("level", "click", "position", "age")}
        expected[f"{family}_predicted"] = (R, 0, K)  # the samples have none
    expected["history_title_index"] = (R, L)
    of_candidates = ("item_id", "request", "weight", "position", "click", "click_weight", "relevance", "level", "title_index")
    expected |= {f"candidate_{name}": (C,) for name in of_candidates}
    expected |= {f"candidate_{name}": (C, 1) for name in COUNTED}
    expected["candidate_predicted"] = (C, K)
    assert {name: tuple(batch[name].shape) for name in batch.layout.places} == expected
    assert {name: tokens.shape[1] for name, tokens in batch.texts.items()} == {"query": 4, "title": 5, "history_title": 5}
    assert all(len(tokens) for tokens in batch.texts.values())
    assert batch.request_features.stride() == R and batch.candidate_features.stride() == C


def test_views_share_the_packed_memory_and_cover_it(batch: SearchBatch) -> None:
    for dtype, packed in batch.packed.items():
        views = [batch[name] for name, place in batch.layout.places.items() if place.dtype == dtype]
        assert sum(view.numel() for view in views) == packed.numel()
        assert all(view.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr() for view in views)


def test_another_value_of_a_view_leaves_the_batch_and_its_other_views(batch: SearchBatch) -> None:
    other = batch.replaced(user_shown=batch["user_shown"] + 1)
    changed = {name for name in batch.layout.places if not torch.equal(other[name].nan_to_num(-7), batch[name].nan_to_num(-7))}
    assert changed == {"user_shown"} and other.packed["int64"] is batch.packed["int64"]


def looked_up(ids: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
    """Each id as a vector that is it twice."""
    return {
        name: JaggedTensor(jagged.values().float().unsqueeze(1).expand(-1, 2), lengths=jagged.lengths())
        for name, jagged in ids.to_dict().items()
    }


def test_without_grades_candidates_have_none_and_the_past_keeps_its_own(batch: SearchBatch) -> None:
    clicks = batch["candidate_click"].clone()
    blind = batch.inputs(looked_up(batch.request_features), {"candidate_brand_id": torch.ones(12, 4)}).without_grades()
    assert blind.candidate["relevance"].isnan().all() and not blind.candidate["level"].any()
    assert blind.sequences["history"].features["level"].equal(batch["history_level"])
    assert batch.labels()["click"].value.equal(clicks)


def test_inputs_have_the_views_and_the_looked_up_ids(batch: SearchBatch) -> None:
    bags = {"candidate_brand_id": torch.ones(12, 4)}
    inputs = batch.inputs(looked_up(batch.request_features), bags)
    assert inputs.request["user_examined"].equal(batch["user_examined"])
    assert inputs.candidate["level"].equal(batch["candidate_level"]) and inputs.candidate["brand_id"].shape == (12, 4)
    assert inputs.candidate["item_id"].shape == (12, 2)
    history = inputs.sequences["history"]
    assert history.lengths.equal(batch["history_lengths"]) and history.features["age"].equal(batch["history_age"])
    assert history.features["item_id"].shape == (4, 3, 2) and inputs.sequences["peer"].features["item_id"].shape == (4, 2, 2)
    assert inputs.texts["title"].tokens is batch.texts["title"]
    assert inputs.candidate_weight.equal(batch.candidate_weight) and inputs.most_candidates == batch.most_candidates


@pytest.mark.parametrize("lengths", [[2, 0, 1, 1], [2, 1, 1, 1]], ids=["with a gap", "one too many"])
def test_several_values_of_a_request_are_refused_by_the_features_name(batch: SearchBatch, lengths: list[int]) -> None:
    several = JaggedTensor(torch.ones(sum(lengths), 2), lengths=torch.tensor(lengths))
    with pytest.raises(ValueError, match="feature 'user_city': a request has several values of it"):
        batch.inputs({**looked_up(batch.request_features), "user_city": several}, {})


def test_padding_comes_last_and_weighs_nothing(batch: SearchBatch) -> None:
    requests, candidates = int(batch.request_weight.sum()), int(batch.candidate_weight.sum())
    assert batch.request_weight.tolist() == [1] * requests + [0] * (4 - requests)
    assert batch.candidate_weight.tolist() == [1] * candidates + [0] * (12 - candidates)
    assert batch["candidate_click_weight"][candidates:].sum() == 0 and batch["candidate_click"][candidates:].sum() == 0
    assert batch["request_id"][requests:].tolist() == [-1] * (4 - requests)
    assert batch.candidate_request[candidates:].tolist() == [3] * (12 - candidates)
    assert batch["candidate_relevance"][candidates:].isnan().all() and batch["candidate_level"][candidates:].sum() == 0
    assert batch["history_lengths"][requests:].sum() == batch["peer_lengths"][requests:].sum() == 0
    assert batch["query_index"][requests:].sum() == 0 and batch["candidate_title_index"][candidates:].sum() == 0


def test_jagged_lengths_agree_with_the_dense_fields(batch: SearchBatch) -> None:
    by_key = batch.request_features.to_dict()
    counts = torch.bincount(batch.candidate_request[batch.candidate_weight > 0], minlength=4)
    assert torch.equal(by_key["history_item_id"].lengths(), batch["history_lengths"])
    assert torch.equal(by_key["peer_item_id"].lengths(), batch["peer_lengths"])
    assert torch.equal(by_key["candidate_item_id"].lengths(), counts)
    assert torch.equal(batch.candidate_features.lengths(), batch.candidate_weight.long())


def test_unlabelled_candidates_have_no_click_weight(tmp_path: Path) -> None:
    batch = read(tmp_path, "candidates", 4)[0]
    assert batch.candidate_weight.sum() > 0
    assert (
        batch["candidate_click_weight"].sum() == 0
        and batch["candidate_level"].sum() == 0
        and batch["candidate_relevance"].isnan().all()
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory and streams need a GPU")
def test_a_pinned_batch_moves_to_the_gpu_and_back(batch: SearchBatch) -> None:
    pinned = batch.pin_memory()
    assert all(tensor.is_pinned() or tensor.numel() == 0 for tensor in tensors(pinned).values())
    moved = pinned.to(device=torch.device("cuda"), non_blocking=True)
    moved.record_stream(torch.cuda.current_stream())
    assert_same(moved.to(device=torch.device("cpu")), batch)
