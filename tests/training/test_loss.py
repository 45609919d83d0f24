"""The loss of a batch, and what is reported beside it, rebuilt from what the towers gave."""

from pathlib import Path

import pytest
import torch
from small_run import LABELS, small_config, write_small_data
from small_task import batches, build, inputs_of, outputs_of, small
from torch import Tensor, nn
from torch.nn import functional as F

from prectr_torchrec.modules import Inputs, OtherTexts, PRECTRFindings

NO_DRAWS = {"parts": {"personal": None, "taste": None}}
"""Of rankers whose training draws nothing."""
WEIGHTS = {"anchor": 0.7, "consistency": 1.3, "random_negatives": 0.4, "load_balance": 0.9}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("prectr"), small_config())


@pytest.mark.parametrize("negatives", ["noise", "swap"])
def test_the_loss_is_the_weighted_sum_of_its_terms(data: Path, negatives: str) -> None:
    losses = {name: {"weight": weight} for name, weight in WEIGHTS.items()}
    losses["consistency"]["margin"], losses["debias"] = 0.2, {"weight": 0.6, "negatives": negatives}
    config = small_config(losses=losses)
    task, batch = build(config, data).train(), batches(config, data)[0]
    outputs = outputs_of(task)
    query = batch["query_index"].clone()
    query[:5] = 0
    batch = batch.replaced(query_index=query)  # some titles are swapped among requests of one query
    report = task(batch)[1]
    found = report.terms
    terms = {**WEIGHTS, "debias": 0.6, "lowered_anchor": 0.6}
    assert {n: v.item() > 0 for n, v in found.items() if n in terms} == dict.fromkeys(terms, True)
    expected = found["bce"] + sum(weight * found[name] for name, weight in terms.items())
    torch.testing.assert_close(found["loss"], expected)
    bce = F.binary_cross_entropy_with_logits(
        report.logged["click"], batch["candidate_click"], batch["candidate_click_weight"], reduction="sum"
    )
    torch.testing.assert_close(found["bce"], bce / batch["candidate_click_weight"].sum())
    swapped = outputs[0].own.swapped()
    assert 0 < swapped.foreign.sum() < batch.candidate_weight.sum()
    torch.testing.assert_close(found["random_negatives"], -swapped.log_pi[swapped.foreign, 0].mean().detach())


def test_sample_weights_multiply_what_each_candidate_adds_and_change_no_prediction(tmp_path: Path) -> None:
    config = small_config(data={"weight": "worth", "labels": LABELS}, model=NO_DRAWS)
    folder = write_small_data(tmp_path, config, requests=20)
    task, batch = build(config, folder).train(), batches(config, folder)[0]
    _, report = task(batch)
    terms, labels = report.terms, batch.labels()
    drawn = batch["candidate_sample_weight"]
    assert labels["order"].sample_weight is not None and drawn[labels["click"].weight > 0].std() > 0.1
    click = labels["click"]
    bce = F.binary_cross_entropy_with_logits(report.logged["click"], click.value, click.weight * drawn, reduction="sum")
    torch.testing.assert_close(terms["bce"], bce / click.weight.sum())
    _, even = task(batch.replaced(candidate_sample_weight=torch.ones_like(drawn)))
    assert even.terms["bce_order"] != terms["bce_order"]
    for name in ("click", "order"):
        torch.testing.assert_close(even.ranking[name], report.ranking[name])


def test_the_debias_reads_the_copies_that_its_setting_names(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(losses={"debias": {"weight": 0.5, "negatives": "noise", "quantile": 0.0}})
    task, batch = build(config, data).train(), batches(config, data)[0]
    outputs, noised = outputs_of(task), list[tuple[Tensor, OtherTexts]]()
    with_noise = task.model.with_noise

    def noted(findings: PRECTRFindings, scale: Tensor) -> OtherTexts:
        noised.append((scale, with_noise(findings, scale)))
        return noised[-1][1]

    monkeypatch.setattr(task.model, "with_noise", noted)
    terms = task(batch)[1].terms
    rows = (batch["candidate_level"] >= 3) & (batch["candidate_click_weight"] > 0)
    ((distance, other),) = noised
    assert distance[batch["candidate_level"] < 3].eq(0).all()
    hinge = (0.5 * distance - (outputs[0].ranking["click"].logit - other.logit)).clamp(0, 3)[rows]
    torch.testing.assert_close(terms["debias"], hinge.mean().detach())


def test_the_parts_reported_are_those_of_the_output(data: Path) -> None:
    task, batch = build(small(), data), batches(small(), data)[0]
    nn.init.normal_(task.model.position.logit)
    task.model.click_tower.head.bias.data = torch.arange(4) * 0.2
    outputs = outputs_of(task)
    task.model.reports_parts = True
    report = task(batch)[1]
    (out,) = outputs
    for who in ("own", "peers"):
        by_level = out.own.effect(who)
        assert report.parts[f"effect_{who}_slope"].equal(by_level[:, 3] - by_level[:, 0]) and by_level.any()
        at_level = by_level.gather(1, (batch["candidate_level"] - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        mean = (out.own.text.relevance.log_pi.exp() * by_level).sum(1)
        expected = torch.where(batch["candidate_level"] > 0, at_level, mean)
        torch.testing.assert_close(report.parts[f"effect_{who}"], expected, atol=1e-5, rtol=1e-4)
    in_order = report.parts["levels_in_order"]
    assert in_order.tolist() == [float(row == sorted(row)) for row in out.own.level_logits.tolist()]
    assert 0 < in_order.mean() < 1
    assert report.ranking["click"].equal(out.ranking["click"].logit)
    assert report.logged["click"].equal(out.logged["click"].logit)
    assert not report.ranking["click"].equal(report.logged["click"])


def test_hidden_grades_are_hidden_from_the_ranker_and_not_from_the_anchor(data: Path) -> None:
    config = small_config(train={"hidden_grades": 0.5}, losses={"random_negatives": {"weight": 0.0}})
    task, batch = build(config, data).train(), batches(config, data)[0]
    seen: list[Inputs] = []
    task.model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    outputs = outputs_of(task)
    torch.manual_seed(0)
    anchor = task(batch)[1].terms["anchor"]
    graded = batch["candidate_level"] > 0
    level, hidden = seen[0].candidate["level"], seen[0].of_graded_requests() < inputs_of(task, batch).of_graded_requests()
    assert level[hidden].eq(0).all() and level[~hidden].equal(batch["candidate_level"][~hidden])
    for rows in (graded, ~graded & (batch.candidate_weight > 0)):
        assert 0.3 < hidden[rows].float().mean() < 0.7
    expected = -outputs[0].own.text.relevance.log_pi[graded].gather(1, batch["candidate_level"][graded, None] - 1).mean()
    torch.testing.assert_close(anchor, expected.detach())
    task.eval()(batch)
    assert seen[1].candidate["level"].equal(batch["candidate_level"])
