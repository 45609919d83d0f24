"""Batches of others as inputs of PRECTR."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from small_run import small_config, write_small_data

from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.modules import SearchInputs, search_inputs
from prectr_torchrec.training.task import build_task

NEEDED = ("candidate_request", "query_tokens", "query_index", "title_tokens", "title_index")
FEW = {
    "candidate_request": torch.tensor([0, 0, 1]),
    "query_tokens": torch.tensor([[7], [8]]),
    "query_index": torch.tensor([0, 1]),
    "title_tokens": torch.tensor([[7, 9], [8, 0]]),
    "title_index": torch.tensor([0, 1, 1]),
}


def test_what_is_not_given_stands_for_nothing(tmp_path: Path) -> None:
    config = small_config()
    data = write_small_data(tmp_path, config)
    batch = next(SearchReader(config, data, "test", data / TOKENIZER).epoch(0))
    names = [name for name in SearchInputs.__annotations__ if not name.startswith(("history_title", "candidate_", *NEEDED))]
    nothing = {name: torch.zeros_like(getattr(batch, name)) for name in names}
    nothing |= {"request_weight": batch.request_weight, "relevance": torch.full_like(batch.relevance, torch.nan)}
    nothing["candidate_predicted"] = torch.zeros_like(batch.candidate_predicted)
    task = build_task(config, data / TOKENIZER).eval()
    needed = {name: getattr(batch, name) for name in NEEDED}
    given = search_inputs(num_levels=4, candidate_weight=batch.candidate_weight, request_weight=batch.request_weight, **needed)
    looked_up = task.embeddings(batch.request_features, batch.candidate_features)
    bare = {name: vectors for name, vectors in looked_up[0].items() if not name.startswith(("history_", "peer_"))}
    past = {name: _none(vectors) for name, vectors in looked_up[0].items() if name not in bare}
    one = task.objective.prectr(given, {**bare, **past}, looked_up[1])
    other = task.objective.prectr(dataclasses.replace(batch, **nothing), *looked_up)
    torch.testing.assert_close(one.click.logit, other.click.logit)


def _none(vectors: torch.Tensor) -> torch.Tensor:
    return type(vectors)(vectors.values()[:0], lengths=torch.zeros_like(vectors.lengths()))


def test_what_was_shown_counts_as_examined() -> None:
    shown = torch.rand(2, 5)
    batch = search_inputs(num_levels=4, **FEW, user_shown=shown)
    assert batch.user_examined is shown and batch.query_examined.eq(0).all()


def test_the_width_of_the_past_is_that_of_what_is_given() -> None:
    clicks = torch.tensor([[1, 0, 1], [0, 0, 0]])
    batch = search_inputs(num_levels=4, **FEW, history_lengths=torch.tensor([3, 0]), history_click=clicks)
    assert batch.history_level.shape == batch.history_age.shape == (2, 3) and batch.peer_level.shape == (2, 0)


def test_a_field_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="histroy_lengths: no field of SearchInputs"):
        search_inputs(num_levels=4, **FEW, histroy_lengths=torch.zeros(2))


def test_lengths_alone_do_not_say_how_wide_the_past_is() -> None:
    with pytest.raises(ValueError, match="peer_lengths: give one of peer_"):
        search_inputs(num_levels=4, **FEW, peer_lengths=torch.tensor([1, 0]))
