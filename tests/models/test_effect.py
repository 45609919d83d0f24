"""What a past changes in the click logits: nothing where there is none, and everything that it brings where there is one."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from small_run import small_config, write_small_data
from small_task import batches, build, inputs_of, run, small
from torch import Tensor, nn

from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.modules.inputs import Whose

PASTS = get_args(Whose)
FIELDS = {
    "own": ("user_events", "user_query_events", "user_shown", "user_clicked", "user_examined"),
    "peers": ("query_events", "query_shown", "query_clicked", "query_examined", "group_shown", "group_clicked", "group_examined"),
}
FAMILY = {"own": "history", "peers": "peer"}
MODELS: dict[str, dict[str, Any]] = {
    "all parts": {},
    "one logit": {"mixture": False},
    "shared incentive": {"parts": {"taste": None, "personal": {"incentive": "shared", "gate": "mlp"}}},
    "no personal part": {"parts": {"personal": None, "taste": None, "interest": None}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("effect"), small_config())


def trained(data: Path, **model: Any) -> Any:
    """A task whose every weight says something."""
    task = build(small(dropout=0.3, **model), data)
    for name, parameter in task.model.named_parameters():
        if "relevance.interaction" not in name:
            nn.init.normal_(parameter, std=0.3)
    return task


def blank(batch: SearchBatch, whose: Whose, rows: Tensor | None = None) -> SearchBatch:
    """The batch with that past of these requests, or of all, as the samples of a newcomer have it: every field zero."""
    events = [name for name in batch.layout.places if name.startswith(f"{FAMILY[whose]}_")]
    keep = torch.zeros(len(batch.request_weight)) if rows is None else 1 - rows.float()
    fields = {name: batch[name] for name in (*FIELDS[whose], *events) if name in batch}
    return batch.replaced(**{n: value * keep.view(-1, *[1] * (value.ndim - 1)).to(value.dtype) for n, value in fields.items()})


@pytest.mark.parametrize("whose", PASTS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_effect_is_what_the_logits_lose_without_that_past(data: Path, model: dict[str, Any], whose: Whose) -> None:
    task = trained(data, **model)
    batch = batches(small(**model), data)[0]
    own = run(task, batch).own
    found = own.effect(whose)
    bare = run(task, blank(batch, whose)).own.level_logits
    torch.testing.assert_close(found, own.level_logits - bare, atol=1e-5, rtol=1e-5)
    assert found.shape == (64, 1 if model.get("mixture") is False else 4) and found.any()


@pytest.mark.parametrize("whose", PASTS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_effect_is_zero_to_the_last_bit_where_there_is_no_past(data: Path, model: dict[str, Any], whose: Whose) -> None:
    task = trained(data, **model)
    batch = batches(small(**model), data)[0]
    newcomers = torch.arange(len(batch.request_weight)) % 2 == 0
    ungraded = batch.replaced(
        candidate_level=batch["candidate_level"] * 0, candidate_relevance=batch["candidate_relevance"] * torch.nan
    )
    for some in (blank(batch, whose, newcomers), blank(ungraded, whose, newcomers)):
        effect = run(task, some).own.effect(whose)
        of_newcomers = newcomers[batch.candidate_request]
        assert effect[of_newcomers].eq(0).all() and effect[~of_newcomers & (batch.candidate_weight > 0)].any()


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_batch_of_one_newcomer_has_no_effect_at_all(data: Path, candidates: int) -> None:
    config = small()
    task = trained(data)
    alone = config.model_copy(update={"batch": config.batch.model_copy(update={"requests": 1, "candidates": 9})})
    batch = blank(blank(batches(alone, data)[0], "own"), "peers")
    batch = batch.replaced(candidate_weight=(torch.arange(9) < candidates).float())
    own = run(task, batch).own
    assert own.effect("own").eq(0).all() and own.effect("peers").eq(0).all()
    assert own.parts["personal"].incentive.tau.eq(0).all()


def test_the_incentive_is_zero_where_neither_past_is_and_only_there(data: Path) -> None:
    task, batch = trained(data), batches(small(), data)[0]
    newcomers = torch.arange(len(batch.request_weight)) % 2 == 0
    incentive = run(task, blank(blank(batch, "own", newcomers), "peers", newcomers)).own.parts["personal"].incentive
    of_newcomers = newcomers[batch.candidate_request]
    past = (batch["user_shown"].any(1) | batch["query_shown"].any(1))[batch.candidate_request] & (batch.candidate_weight > 0)
    assert incentive.tau[of_newcomers].eq(0).all() and incentive.tau[~of_newcomers & past].ne(0).any(1).all()


@pytest.mark.parametrize("whose", PASTS)
def test_inputs_without_a_past_share_every_other_field_of_the_reader(data: Path, whose: Whose) -> None:
    inputs = inputs_of(build(small(), data), batches(small(), data)[0])
    other = inputs.without_past(whose)
    changed = {name for name, value in inputs.request.items() if other.request[name] is not value}
    assert changed == set(FIELDS[whose]) and not any(other.request[name].any() for name in changed)
    for name, events in inputs.sequences.items():
        assert other.sequences[name].features is events.features
        assert (other.sequences[name].lengths is events.lengths) == (name != FAMILY[whose])
    assert not other.sequences[FAMILY[whose]].lengths.any()
    rest = {field.name for field in dataclasses.fields(inputs)} - {"request", "sequences"}
    assert all(getattr(other, name) is getattr(inputs, name) for name in rest)


def test_effects_change_no_score_and_are_there_only_where_asked_for(data: Path) -> None:
    task, batch = trained(data), batches(small(), data)[0]
    plain = run(task, batch)
    task.model.reports_parts = True
    asked = run(task, batch)
    assert "effect_own" not in plain.parts and "effect_own" in asked.parts
    assert asked.own.level_logits.equal(plain.own.level_logits)
    assert asked.logged["click"].logit.equal(plain.logged["click"].logit)
    own = run(task.train(), batch).own
    with pytest.raises(ValueError, match="training mode, where dropout would pass for an effect"):
        own.effect("own")
