"""Each part of PRECTR reads what it should, in its place, and reaches the score with its sign."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_config, write_small_data
from small_task import batches, build, inputs_of, run, small
from torch.nn import functional as F

from prectr_torchrec.modules import Personal, Widths


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("prectr"), small_config())


def test_a_swapped_title_is_judged_as_if_it_were_the_candidates(data: Path) -> None:
    config = small()
    task, batch = build(config, data), batches(config, data)[0]
    count = int(batch.candidate_weight.sum())
    other = (torch.arange(len(batch["candidate_level"])) + count // 2) % count
    logged = run(task, batch).own
    judged = run(task, batch.replaced(candidate_title_index=batch["candidate_title_index"][other])).own.text.relevance
    swapped = logged.swapped()
    torch.testing.assert_close(swapped.log_pi, judged.log_pi)
    click = (judged.log_pi.exp() * logged.level_logits.sigmoid()).sum(1)
    torch.testing.assert_close(swapped.logit.sigmoid(), click)
    query = batch["query_index"][batch.candidate_request]
    assert swapped.foreign.equal((query != query[other]) & (batch.candidate_weight > 0))
    one = run(task, batch.replaced(query_index=torch.zeros_like(batch["query_index"]))).own.swapped()
    assert not one.foreign.any()  # a title under its own query is no negative


def test_noise_is_on_vectors_and_match_features_in_their_own_deviations(data: Path) -> None:
    config = small()
    task, batch = build(config, data), batches(config, data)[0]
    read: list[tuple[torch.Tensor, ...]] = []
    task.model.relevance.register_forward_pre_hook(lambda module, given: read.append(given))
    real, scale = batch.candidate_weight > 0, torch.tensor([0.0, 3.0]).repeat(32)
    run(task, batch).own.noised(scale)
    for plain, noised in zip(*read, strict=True):
        deviation = plain[real].std(0, unbiased=False)
        moved = ((noised - plain) / deviation)[:, deviation > 1e-4]
        assert moved[scale == 0].eq(0).all() and moved[scale > 0].std().item() == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("negatives", ["swap", "noise"])
def test_the_score_of_a_lowered_copy_moves_the_relevance_tower(data: Path, negatives: str) -> None:
    config = small()
    task, batch = build(config, data), batches(config, data)[0]
    own = run(task, batch).own
    other = own.swapped() if negatives == "swap" else own.noised(torch.ones(64))
    other.logit.sum().backward()
    head = task.model.relevance.tower.head.weight.grad
    assert head is not None and head.abs().sum() > 0


@pytest.mark.parametrize("known_grade", [{}, {"parts": {"grade": None}}])
def test_a_known_grade_leaves_the_towers_levels_unless_it_overrides(data: Path, known_grade: dict[str, Any]) -> None:
    config = small(grade_overrides=False, **known_grade)
    out = run(build(config, data), batches(config, data)[0])
    mean = (out.own.text.relevance.log_pi.exp() * out.own.level_logits.sigmoid()).sum(1)
    torch.testing.assert_close(out.ranking["click"].logit.sigmoid(), mean)


def test_incentive_and_taste_are_added_to_the_click_logits(data: Path) -> None:
    config = small()
    task, batch = build(config, data), batches(config, data)[0]
    towers: list[torch.Tensor] = []
    task.model.click_tower.register_forward_hook(lambda module, given, out: towers.append(out))
    own = run(task, batch).own
    taste = own.parts["taste"].mean
    shift = taste.unsqueeze(1) + own.parts["personal"].incentive.tau
    torch.testing.assert_close(own.level_logits, towers[0]["click"] + shift)
    assert taste.any()


def test_a_sure_prediction_reads_the_vector_of_its_level(data: Path) -> None:
    config = small()
    task, batch = build(config, data), batches(config, data)[0]
    part, none = task.model.parts["grade"], torch.zeros_like(batch["candidate_level"])
    for level in range(1, 5):
        sure = F.one_hot(none + level - 1, 4).float()
        blind = batch.replaced(
            candidate_level=none,
            candidate_relevance=torch.full_like(batch["candidate_relevance"], torch.nan),
            candidate_predicted=sure,
        )
        vector, grade, missing = part(inputs_of(task, blind), None).features.split([8, 1, 1], dim=1)
        torch.testing.assert_close(vector, part.level.weight[[0, level]].sum(0).expand_as(vector))
        torch.testing.assert_close(grade, ((part.level_grades[level - 1] - 1) / 2).expand_as(grade))
        assert missing.eq(1).all()


PLAIN = {"parts": {"personal": None, "taste": None, "statistics": {}}}


@pytest.mark.parametrize("model", [{}, PLAIN], ids=["corrected", "plain"])
def test_counters_are_read_in_their_places(data: Path, model: dict[str, Any]) -> None:
    config = small(**model)
    task, batch = build(config, data), batches(config, data)[0]
    corrected = not model
    shares = {"user_examined": 0.5, "user_clicked": 0.25}
    batch = batch.replaced(**{name: batch["user_shown"] * share for name, share in shares.items() if name in batch})
    read = []
    parts = task.model.parts
    for statistics in [parts["statistics"].of, *([parts["personal"].statistics] if corrected else [])]:
        statistics["user"].register_forward_pre_hook(lambda module, given: read.append(given))
    run(task, batch)
    assert len(read) == 1 + corrected
    for shown, clicked, examined in read:
        assert shown.equal(batch["user_shown"]) and clicked.equal(batch["user_clicked"])
        assert examined.equal(batch["user_examined"] if corrected else batch["user_shown"])


def test_peers_are_compared_feature_by_feature_in_any_order() -> None:
    widths = Widths({}, {"item": 4, "brand": 4}, {"history": {"item": 4, "brand": 4}, "peer": {"brand": 4, "item": 4}})
    part = Personal(widths, 4, relevance_dim=8)
    assert part.peer_names == part.item_names == ["item", "brand"]


@pytest.mark.parametrize("part", ["own", "peers"])
def test_each_candidate_has_a_preference_of_its_own(data: Path, part: str) -> None:
    config = small(parts={"taste": None, "personal": {"own": part == "own", "peers": part == "peers", "incentive": "none"}})
    task, batch = build(config, data), batches(config, data)[0]
    found = run(task, batch).own.parts["personal"].preference
    past = (batch["history_lengths"] if part == "own" else batch["peer_lengths"])[batch.candidate_request]
    several = [r for r in range(8) if ((batch.candidate_request == r) & (past > 0) & (batch.candidate_weight > 0)).sum() > 1]
    assert several
    for r in several:
        of_request = (batch.candidate_request == r) & (batch.candidate_weight > 0)
        assert not torch.allclose(*found.vector[of_request][:2])


def test_a_past_without_counters_is_a_past(data: Path) -> None:
    config = small()
    task, batch = build(config, data), batches(config, data)[0]
    none = {name: torch.zeros_like(batch[f"user_{name}"]) for name in ("shown", "clicked", "examined")}
    batch = batch.replaced(**{f"user_{name}": zeros for name, zeros in none.items()})
    past = (batch["history_lengths"] > 0)[batch.candidate_request] & (batch.candidate_weight > 0)
    found = run(task, batch).own.parts["personal"].preference
    other = run(task, batch.replaced(history_click=1 - batch["history_click"])).own.parts["personal"].preference
    assert past.any()
    assert (found.weights[past, 0] > 0).all()
    assert (found.vector[past] != other.vector[past]).any(1).all()
