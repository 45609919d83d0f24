import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_config, write_small_data
from small_task import batches, build, inputs_of, outputs_of, run, small
from torch import nn
from torchrec.distributed.train_pipeline import Tracer

from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.modules import OtherTexts, anchor_loss, grade_distributions
from prectr_torchrec.training.task import RankingTask

NGRAMS = {"model_type": "ngram", "rows": 50, "embedding_dim": 8, "hidden": [8]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("prectr"), small_config())


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"mixture": False},
        {"parts": {"interest": None}},
        {"text": False},
        {"match": False},
        {"parts": {"statistics": None}},
        {"position_bias": False},
        {"grade_overrides": False},
        {"grade_overrides": False, "parts": {"grade": None}},
        {"cross_layers": 2},
        {"parts": {"personal": None, "taste": None}},
        {"parts": {"taste": None, "personal": {"peers": False, "incentive": "shared"}}},
        {"parts": {"taste": None, "personal": {"own": False}}},
        {"parts": {"taste": None, "personal": {"incentive": "shared", "gate": "mlp"}}},
        {"parts": {"taste": None, "personal": {"incentive": "shared", "gate": "none"}}},
        {"parts": {"interest": None, "personal": None}},
        {"parts": {"taste": None, "personal": {"peers": False}}, "mixture": False},
    ],
)
def test_every_part_can_be_switched_off_and_every_parameter_learns(data: Path, model: dict[str, Any]) -> None:
    config = small(**model)
    task = build(config, data).train()
    loss, report = task(batches(config, data)[0])
    loss.backward()
    assert loss.isfinite() and report.logged["click"].shape == (config.batch.candidates,)
    silent = [n for n, p in task.named_parameters() if p.grad is None]
    assert silent == []


@pytest.mark.parametrize("negatives", ["noise", "swap"])
@pytest.mark.parametrize("text", [{"interaction": "late"}, {"interaction": "cross"}, {"encoder": NGRAMS}], ids=str)
def test_the_text_side_may_read_texts_in_any_way(data: Path, text: dict[str, Any], negatives: str) -> None:
    config = small_config(text=text, losses={"debias": {"weight": 0.5, "negatives": negatives}})
    task = build(config, data).train()
    loss, report = task(batches(config, data)[0])
    loss.backward()
    assert loss.isfinite() and report.terms["debias"] >= 0 and report.terms["random_negatives"] > 0
    assert [n for n, p in task.named_parameters() if p.grad is None] == []
    assert ("title" in task.model.parts) == (text.get("interaction") != "cross")


@pytest.mark.parametrize("negatives", ["noise", "swap"])
def test_debias_reaches_every_parameter_of_the_relevance_side_and_is_off_when_scoring(data: Path, negatives: str) -> None:
    config = small_config(losses={"debias": {"weight": 0.5, "negatives": negatives}})
    task = build(config, data).train()
    batch = batches(config, data)[0]
    loss, report = task(batch)
    loss.backward()
    assert report.terms["debias"] >= 0 and report.terms["lowered_anchor"] > 0
    assert [n for n, p in task.named_parameters() if p.grad is None] == []
    assert "debias" not in task.eval()(batch)[1].terms


def swapped(task: RankingTask, batch: SearchBatch, share: float) -> OtherTexts:
    task.model.swap_share = share
    return run(task, batch).own.swapped()


@pytest.mark.parametrize("interaction", ["dual", "cross"])
def test_titles_are_swapped_in_a_share_of_the_rows(data: Path, interaction: str) -> None:
    config = small_config(text={"interaction": interaction}, model={"dropout": 0.0})
    task = build(config, data)
    batch = batches(config, data)[0]
    whole, part = (swapped(task, batch, share) for share in (1.0, 0.4))
    drawn = part.log_pi.any(1)
    assert drawn.sum() == round(0.4 * len(drawn)) and part.foreign.equal(whole.foreign & drawn)
    torch.testing.assert_close(part.log_pi[drawn], whole.log_pi[drawn])
    torch.testing.assert_close(part.logit[drawn], whole.logit[drawn])


def test_the_configuration_sets_the_share_of_swapped_titles_and_what_the_anchor_is_on(data: Path) -> None:
    config = small_config(model={"swap_share": 0.4}, losses={"anchor": {"target": "grade"}})
    task = build(config, data).train()
    batch = batches(config, data)[0]
    outputs = outputs_of(task)
    report = task(batch)[1]
    own = outputs[0].own
    assert own.swapped().log_pi.any(1).sum() == round(0.4 * config.batch.candidates)
    targets = grade_distributions(batch["candidate_relevance"], torch.tensor(config.data.levels.grades)).nan_to_num()
    torch.testing.assert_close(report.terms["anchor"], anchor_loss(own.text.relevance.log_pi, targets).detach())


def test_taste_and_preference_follow_the_own_past(data: Path) -> None:
    config = small()
    task = build(config, data)
    batch = next(b for b in batches(config, data) if b["history_lengths"].any())
    before = run(task, batch).own.parts
    after = run(task, batch.replaced(history_click=1 - batch["history_click"])).own.parts
    with_history = (batch["history_lengths"] > 0)[batch.candidate_request] & (batch.candidate_weight > 0)
    taste, taste_before = after["taste"].mean, before["taste"].mean
    assert not torch.allclose(taste[with_history], taste_before[with_history])
    assert taste[~with_history].eq(taste_before[~with_history]).all()
    preference, preference_before = (found["personal"].preference.vector[with_history] for found in (after, before))
    assert not torch.allclose(preference, preference_before)


def test_padding_changes_no_real_candidate(data: Path) -> None:
    config = small()
    wide = config.model_copy(update={"batch": config.batch.model_copy(update={"requests": 13, "candidates": 100})})
    task = build(config, data)
    narrow_batches, wide_batch = batches(config, data), batches(wide, data)[0]
    scores = {}
    for batch in narrow_batches:
        logit = run(task, batch).ranking["click"].logit
        real = batch.candidate_weight > 0
        scores |= dict(zip(keys(batch), logit[real].tolist(), strict=True))
    logit = run(task, wide_batch).ranking["click"].logit[wide_batch.candidate_weight > 0].tolist()
    assert logit == pytest.approx([scores[key] for key in keys(wide_batch)], abs=1e-5)


def keys(batch: SearchBatch) -> list[tuple[int, int, int]]:
    """Request, item and place of each real candidate."""
    real = batch.candidate_weight > 0
    request = batch["request_id"][batch.candidate_request][real].tolist()
    return [
        (r, i, request[:place].count(r))
        for place, (r, i) in enumerate(zip(request, batch["candidate_item_id"][real].tolist(), strict=True))
    ]


def test_a_batch_of_nothing_but_padding_has_no_loss_and_a_zero_gradient(data: Path) -> None:
    config = small()
    reader = SearchReader(config, data, "test", data / TOKENIZER)
    empty = list(reader.epoch(0, num_batches=reader.num_batches(0) + 1))[-1]
    task = build(config, data).train()
    loss, _ = task(empty)
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and p.grad.eq(0).all() for p in task.parameters())


def test_position_moves_the_click_but_not_the_ranking_logit(data: Path) -> None:
    config = small()
    task = build(config, data)
    nn.init.normal_(task.model.position.logit)
    batch = batches(config, data)[0]
    moved = batch.replaced(candidate_position=batch["candidate_position"] + 3)
    torch.testing.assert_close(run(task, moved).ranking["click"].logit, run(task, batch).ranking["click"].logit)
    assert not torch.allclose(run(task, moved).logged["click"].logit, run(task, batch).logged["click"].logit)


def test_a_known_grade_overrides_the_predicted_level(data: Path) -> None:
    config = small()
    task = build(config, data)
    batch = batches(config, data)[0]
    level = batch["candidate_level"].clone()
    level[:] = 3
    out = run(task, batch.replaced(candidate_level=level))
    torch.testing.assert_close(out.ranking["click"].logit, out.own.level_logits[:, 2], atol=1e-3, rtol=1e-3)


def test_a_predicted_distribution_replaces_the_towers_where_no_grade_is_known(data: Path) -> None:
    config = small()
    task = build(config, data)
    batch = batches(config, data)[0]
    blind = batch["candidate_level"] == 0
    predicted = torch.tensor([0.5, 0.0, 0.25, 0.25]) * blind.unsqueeze(1)
    out = run(task, batch.replaced(candidate_predicted=predicted))
    mean = (out.own.level_logits.sigmoid() * torch.tensor([0.5, 0.0, 0.25, 0.25])).sum(1)
    torch.testing.assert_close(out.ranking["click"].logit.sigmoid()[blind], mean[blind], atol=2e-3, rtol=0)
    known = run(task, batch)
    torch.testing.assert_close(out.ranking["click"].logit[~blind], known.ranking["click"].logit[~blind])
    assert bool(blind.any()) and not torch.allclose(out.own.level_logits[blind], known.own.level_logits[blind])
    torch.testing.assert_close(out.own.text.relevance.log_pi, known.own.text.relevance.log_pi)


def test_predicted_levels_of_past_events_are_read(data: Path) -> None:
    config = small()
    task = build(config, data)
    batch = batches(config, data)[0]
    nn.init.normal_(task.model.parts["taste"].taste.level_logit)
    inputs = inputs_of(task, batch)
    before = task.model(inputs).own.parts
    for family in ("history", "peer"):
        events = inputs.sequences[family]
        predicted = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(*events.features["level"].shape, 4)
        known = events._replace(features={**events.features, "predicted": predicted})
        after = task.model(dataclasses.replace(inputs, sequences={**inputs.sequences, family: known})).own.parts
        assert not torch.allclose(after["personal"].preference.vector, before["personal"].preference.vector)
        assert torch.allclose(after["taste"].mean, before["taste"].mean) == (family == "peer")


def test_without_known_grades_the_score_does_not_read_them(data: Path) -> None:
    config = small(grade_overrides=False, parts={"grade": None})
    task = build(config, data)
    batch = batches(config, data)[0]
    blind = batch.replaced(
        candidate_level=torch.zeros_like(batch["candidate_level"]),
        candidate_relevance=torch.full_like(batch["candidate_relevance"], torch.nan),
        candidate_predicted=torch.full_like(batch["candidate_predicted"], 0.25),
    )
    torch.testing.assert_close(run(task, blind).ranking["click"].logit, run(task, batch).ranking["click"].logit)


def test_relevance_never_depends_on_user_or_grade(data: Path) -> None:
    config = small()
    task = build(config, data)
    batch = batches(config, data)[0]
    other = batch.replaced(
        candidate_level=torch.zeros_like(batch["candidate_level"]),
        user_shown=batch["user_shown"] + 5,
        history_click=1 - batch["history_click"],
    )
    torch.testing.assert_close(run(task, other).own.text.relevance.log_pi, run(task, batch).own.text.relevance.log_pi)


def test_graded_pairs_without_users_train_the_relevance_tower_alone(data: Path) -> None:
    config = small()
    task = build(config, data).train()
    loss, report = task(batches(config, data, "judgments")[0])
    loss.backward()
    prectr = task.model
    assert report.terms["bce"] == 0 and report.terms["anchor"] > 0
    assert prectr.relevance.tower.head.weight.grad.abs().sum() > 0
    assert prectr.click_tower.head.weight.grad.eq(0).all()
    assert all(p.grad.eq(0).all() for p in task.embeddings.parameters())


def test_what_no_part_reads_may_be_missing(data: Path) -> None:
    config = small(
        parts=dict.fromkeys(("statistics", "personal", "taste", "interest", "grade", "numbers", "vectors")), grade_overrides=False
    )
    task = build(config, data)
    batch = batches(config, data)[0]
    inputs = inputs_of(task, batch)
    features = ("user_id", "query_id", "device", "query_kind", "user_interests", "history_brands")
    counts = ("user_events", "user_query_events", "query_events")
    of_candidates = ("item_id", "brand_id", "title_tokens", "tags", "badges", "engine", "position")
    bare = dataclasses.replace(
        inputs,
        request={name: inputs.request[name] for name in (*features, *counts)},
        candidate={name: inputs.candidate[name] for name in of_candidates},
        sequences={},
        texts={name: inputs.texts[name] for name in ("query", "title")},
    )
    assert task.model(bare).logged["click"].logit.equal(task.model(inputs).logged["click"].logit)


def test_the_task_traces_with_fx_around_ranker_and_losses(data: Path) -> None:
    task = build(small(), data)
    leaves = [
        f"embeddings.{name}"
        for name in ("sequences.4", "sequences.8", "bags.candidate", "bags.weighted_candidate", "bags.request")
    ]
    leaves += ["model", "losses"]
    graph = Tracer(leaf_modules=leaves).trace(task)
    assert {n.target for n in graph.nodes if n.op == "call_module"} == set(leaves)
