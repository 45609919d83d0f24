"""Labels that follow the click: what rankers of each kind say of them, and what they learn from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_config, write_small_data
from small_task import batches, build, outputs_of, run
from torch.nn import functional as F

from prectr_torchrec.config.run import RunConfig, validate_config
from prectr_torchrec.config.unused import unused_settings
from prectr_torchrec.modules import CrossEntropy, Inputs, Label, Predictions, label_chain
from prectr_torchrec.system.errors import ConfigError

LABELS = {"order": {"after": "cart"}, "cart": {}}
TOWER = {"tower": [16], "parts": {"match": None}}
KINDS: dict[str, dict[str, Any]] = {
    "prectr": {},
    "without a mixture": {"mixture": False},
    "dnn": {"kind": "dnn", **TOWER},
    "dcn": {"kind": "dcn", **TOWER},
    "din": {"kind": "din", **TOWER},
    "mmoe": {"kind": "mmoe", "num_experts": 3, "expert": [12], **TOWER},
}


def with_labels(model: dict[str, Any], **sections: Any) -> RunConfig:
    losses = {"losses": {"random_negatives": {"weight": 0.0}}} if "kind" in model else {}
    return small_config(data={"labels": LABELS}, model=model, **{**losses, **sections})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_data(tmp_path_factory.mktemp("labels"), with_labels({}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_is_no_likelier_than_what_it_follows_and_its_head_learns(data: Path, kind: str) -> None:
    config = with_labels(KINDS[kind])
    task = build(config, data)
    batch = batches(config, data)[0]
    found = run(task, batch)
    assert list(found.ranking) == list(found.logged) == ["click", "order", "cart"] == list(task.model.labels)
    for said in (found.ranking, found.logged):
        click, cart, order = (said[label] for label in ("click", "cart", "order"))
        assert (click.log_yes > cart.log_yes).all() and (cart.log_yes > order.log_yes).all()
        for p in (click, cart, order):
            torch.testing.assert_close(p.log_yes.exp() + p.log_no.exp(), torch.ones_like(p.log_yes))
    seen = (found.logged["order"].log_yes - found.ranking["order"].log_yes).exp()  # the same examination for all labels
    torch.testing.assert_close(seen, (found.logged["click"].log_yes - found.ranking["click"].log_yes).exp())
    loss, _ = task.train()(batch)
    loss.backward()
    assert [n for n, p in task.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", ["prectr", "dnn"])
def test_its_labels_counters_move_a_candidate(data: Path, kind: str) -> None:
    config = with_labels(KINDS[kind])
    task, batch = build(config, data).eval(), batches(config, data)[0]
    before = run(task, batch).ranking["order"].log_yes
    for name in ("user_orders", "candidate_orders"):
        batch[name].add_(5)
        after = run(task, batch).ranking["order"].log_yes
        assert (after != before).all(), name
        before = after


def test_the_losses_of_a_chain_are_the_likelihood_of_how_far_along_it_things_went(data: Path) -> None:
    config = with_labels({}, losses={"labels": {"order": 0.5}})
    task, batch = build(config, data).train(), batches(config, data)[0]
    outputs = outputs_of(task)
    report = task(batch)[1]
    p = {label: found.log_yes.detach().exp() for label, found in outputs[0].logged.items()}
    values = {label: batch[f"candidate_{label}"] for label in p}
    known = {label: batch[f"candidate_{label}_weight"] > 0 for label in p}
    for label, before in (("cart", "click"), ("order", "cart")):
        assert 0 < known[label].sum() < (batch.candidate_weight > 0).sum() and not known[label][batch.candidate_weight == 0].any()
        given = p[label] / p[before]  # where the one before it is known and 1; nothing where it is known and 0
        conditional = values[before] * F.binary_cross_entropy(given, values[label], reduction="none")
        of_all = F.binary_cross_entropy(p[label], values[label], reduction="none")
        rows = torch.where(known[before], conditional, of_all)[known[label]]
        torch.testing.assert_close(report.terms[f"bce_{label}"], rows.mean())
    others = {name: 1.0 for name in ("bce", "bce_cart")} | {"bce_order": 0.5}
    others |= {"anchor": 0.3, "consistency": 0.3, "load_balance": 0.01, "random_negatives": 0.1}
    torch.testing.assert_close(report.terms["loss"], sum(weight * report.terms[name] for name, weight in others.items()))


def chain_loss(click: float, cart: float, click_known: float = 1.0) -> float:
    """The loss of a cart of probability 1/8, of a candidate that is clicked with 1/2."""
    chain = label_chain({"click": torch.zeros(1), "cart": torch.tensor([-math.log(3)])}, {"cart": "click"})
    labels = {
        "click": Label(torch.tensor([click]), torch.tensor([click_known])),
        "cart": Label(torch.tensor([cart]), torch.ones(1)),
    }
    inputs = Inputs({}, {}, {}, {}, torch.ones(1), torch.tensor([0]), torch.ones(1))
    return float(CrossEntropy("cart", "click")(Predictions(chain, chain), inputs, labels)["bce_cart"])


def test_the_loss_of_a_label_by_hand() -> None:
    assert chain_loss(click=1, cart=1) == pytest.approx(-math.log(1 / 4))
    assert chain_loss(click=1, cart=0) == pytest.approx(-math.log(3 / 4))
    assert chain_loss(click=0, cart=0) == 0
    assert chain_loss(click=0, cart=1) == pytest.approx(-math.log(1 / 8))  # the log contradicts itself
    assert chain_loss(click=0, cart=0, click_known=0) == pytest.approx(-math.log(7 / 8))


def test_padding_and_batches_without_a_known_label_teach_nothing(data: Path) -> None:
    config = with_labels({})
    task, batch = build(config, data).train(), batches(config, data)[0]
    zero = torch.zeros_like(batch["candidate_order_weight"])
    with_none = batch.replaced(candidate_order_weight=zero, candidate_cart_weight=zero)
    loss, report = task(with_none)
    loss.backward()
    assert report.terms["bce_order"] == report.terms["bce_cart"] == 0 and loss.isfinite()
    heads = dict(task.model.click_tower.labels.named_parameters())
    assert heads and all(p.grad is not None and not p.grad.any() for p in heads.values())


def test_without_labels_the_parameters_and_their_draws_are_those_of_before(data: Path) -> None:
    of_labels_alone = with_labels({"parts": {"label_counters": None}})
    with_, without = (build(config, data).model.state_dict() for config in (of_labels_alone, small_config()))
    extra = with_.keys() - without.keys()
    assert without.keys() <= with_.keys() and all(name.startswith("click_tower.labels.of_") for name in extra)
    assert len(extra) == 8 and all(value.equal(with_[name]) for name, value in without.items())


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a loss of no label": ({"losses": {"labels": {"ordr": 1.0}}}, "losses.labels.ordr: data.labels has no such label .*'order'"),
    "a loss of the click": ({"losses": {"labels": {"click": 1.0}}}, "losses.labels.click: .*losses.click is the click's"),
    "a negative weight": ({"losses": {"labels": {"order": -1.0}}}, "losses.labels.order: .* greater than or equal to 0"),
    "a score of no label": ({"score": {"orders": 1.0}}, "score.orders: data.labels has no such label .*'order'"),
    "no score": ({"score": {}}, "score: .*at least 1"),
    "an infinite score": ({"score": {"order": float("inf")}}, "score.order: .*finite number"),
    "a ranker without": (
        {"score": {"order": 1.0}, "model": {"kind": "mixed"}},
        "score.order: .*'mixed' predicts the click alone",
    ),
}


@pytest.mark.parametrize(("sections", "message"), WRONG.values(), ids=WRONG)
def test_a_label_that_is_not_predicted_is_named(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config({"name": "x", "data": {"labels": LABELS}, **sections}, "test")


def test_a_ranker_of_the_click_alone_says_that_labels_are_not_used() -> None:
    losses = {"labels": {"order": 2.0}}
    config = validate_config({"name": "x", "data": {"labels": LABELS}, "model": {"kind": "mixed"}, "losses": losses}, "test")
    assert config.predicted_labels == ("click",)
    warnings = unused_settings(config, {"losses.labels.order": 2.0})
    assert "data.labels is not used: a ranker of kind 'mixed' predicts the click alone" in warnings
    assert "losses.labels is not used: the ranker predicts the click alone" in warnings
