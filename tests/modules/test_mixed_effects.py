"""Mixed effects: the formula, the prior, and what is drawn."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from prectr_torchrec.modules import GaussianEffect, Given, Inputs, Label, TextMatch, TextRelevance, Texts, Widths
from prectr_torchrec.modules.losses.prior import Prior
from prectr_torchrec.modules.rankers.mixed_effects import MixedEffects

RANK = 2
GRADES = [1.25, 1.8, 2.5, 2.9]
EFFECTS = {"user_effect": 2 + RANK, "query_effect": 2, "group_effect": 2, "item_effect": 2}


@pytest.fixture
def model() -> MixedEffects:
    model = MixedEffects(EFFECTS, ["brand_id", "title_tokens"], rank=RANK, level_grades=GRADES, grade_range=(1.0, 3.0))
    with torch.no_grad():
        model.by_grade.copy_(torch.tensor([-2.0, -1.0, 0.0, 0.5]))
        model.position_bias[:3] = torch.tensor([9.0, 0.5, -1.0])
    return model.eval()


@pytest.fixture
def inputs() -> Inputs:
    """Two requests with two candidates each: graded, predicted, nothing known, and graded between knots."""
    torch.manual_seed(0)
    request = {name: torch.randn(2, 2 * dim) for name, dim in EFFECTS.items() if name != "item_effect"}
    request |= {"user_trained": torch.tensor([[10.0], [0.0]]), "query_trained": torch.tensor([[4.0], [5.0]])}
    request["group_trained"] = torch.tensor([[20.0], [8.0]])
    candidate = {
        "item_effect": torch.randn(4, 4),
        "brand_id": torch.randn(4, RANK),
        "title_tokens": torch.randn(4, RANK),
        "item_trained": torch.tensor([[1.0], [2.0], [0.0], [3.0]]),
        "relevance": torch.tensor([3.0, torch.nan, torch.nan, 1.2]),
        "predicted": torch.tensor([[0.0] * 4, [0.5, 0.0, 0.5, 0.0], [0.0] * 4, [0.0] * 4]),
        "position": torch.tensor([1, 2, 0, 2]),
    }
    return Inputs(request, candidate, {}, {}, torch.ones(2), torch.tensor([0, 0, 1, 1]), torch.ones(4))


def test_the_logit_is_the_formula(model: MixedEffects, inputs: Inputs) -> None:
    out, knots = model(inputs), [1.0, 5 / 3, 7 / 3, 3.0]
    for c, grade in enumerate([3.0, (1.25 + 2.5) / 2, 2.0, 1.2]):
        left = max(k for k in range(3) if knots[k] <= grade)
        share = (grade - knots[left]) / (2 / 3)
        f = (1 - share) * model.by_grade[left] + share * model.by_grade[left + 1]
        vector = inputs.candidate["brand_id"][c] + inputs.candidate["title_tokens"][c]
        x = torch.cat([torch.tensor([1.0, grade - 2.0]), vector])
        rows = {name: inputs.rows([name])[c] for name in EFFECTS}
        z = f + sum((rows[name][:dim] * x[:dim]).sum() for name, dim in EFFECTS.items())
        torch.testing.assert_close(out.ranking["click"].logit[c], z)
        bias = [0.0, 0.0, -1.5][int(inputs.candidate["position"][c])]
        torch.testing.assert_close(out.logged["click"].logit[c], z + bias)
        torch.testing.assert_close(out.own.x[c], x)
    torch.testing.assert_close(out.own.by_effect["user_effect"][1], (rows_of(inputs)[1] * out.own.x[1]).sum())


def rows_of(inputs: Inputs) -> torch.Tensor:
    """(C, 2 + rank) means of the users' rows."""
    return inputs.rows(["user_effect"])[:, : 2 + RANK]


def test_each_row_brings_its_share_of_the_divergence_from_its_prior(model: MixedEffects, inputs: Inputs) -> None:
    with torch.no_grad():
        model.effects["query_effect"].log_sd.copy_(torch.tensor([0.5, 2.0]).log())
    assert not model(inputs).own.divergence.any()
    found = model.train()(inputs).own.divergence
    expected = torch.zeros(4)
    for name, dim in EFFECTS.items():
        rows = inputs.rows([name])
        effect = model.effects[name]
        row = Normal(rows[:, :dim], (rows[:, dim:] + effect.start).exp())
        shares = inputs.rows([name.replace("effect", "trained")]).squeeze(1).clamp(min=1)
        expected += kl_divergence(row, Normal(torch.zeros(dim), effect.log_sd.exp())).sum(1) / shares
    torch.testing.assert_close(found, expected)
    labels = {"click": Label(torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 1.0]))}
    loss = Prior()(model(inputs), inputs, labels)["prior"]
    torch.testing.assert_close(loss, (expected[0] + expected[3]) / 2)
    assert Prior().eval()(model(inputs), inputs, labels) == {}


def test_the_variance_that_fits_best_is_the_mean_square_of_the_rows() -> None:
    torch.manual_seed(0)
    effect, occurrences = GaussianEffect(1), torch.tensor([1, 3, 6])
    rows = torch.tensor([[0.5, -1.0], [-2.0, 0.0], [1.0, 0.5]])
    square = rows[:, 0].square() + (2 * (rows[:, 1] + effect.start)).exp()
    with torch.no_grad():
        effect.log_sd.copy_(square.mean().log() / 2)
    of_candidates = torch.repeat_interleave(torch.arange(3), occurrences)
    _, divergence = effect(rows[of_candidates])
    (divergence / occurrences[of_candidates]).sum().backward()
    assert effect.log_sd.grad is not None and effect.log_sd.grad.abs() < 1e-5


def test_rows_are_drawn_in_training_around_their_means() -> None:
    torch.manual_seed(0)
    effect = GaussianEffect(1)
    b, _ = effect(torch.tensor([[3.0, 0.5]]).repeat(20_000, 1))
    assert b.mean().item() == pytest.approx(3.0, abs=0.02)
    assert b.std().log().item() == pytest.approx(0.5 + effect.start, abs=0.02)


def test_of_whom_nothing_was_learned_no_logit_is_moved(model: MixedEffects, inputs: Inputs) -> None:
    stranger = {**inputs.request, "user_effect": torch.zeros(2, 2 * (2 + RANK))}
    out = model(replace(inputs, request=stranger))
    assert not out.own.by_effect["user_effect"].any()


def test_positions_start_from_their_examination(model: MixedEffects, inputs: Inputs) -> None:
    model.start_from([1.0, 0.5])
    out = model(inputs)
    moved = out.logged["click"].logit - out.ranking["click"].logit
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.5, 1.0, 0.5]).log().nan_to_num(neginf=0.0))
    assert model.position_bias[model.position_count].item() == pytest.approx(torch.tensor(0.5).log().item())


def test_every_weight_and_row_learns(model: MixedEffects, inputs: Inputs) -> None:
    rows = {name: inputs.request[name].requires_grad_() for name in EFFECTS if name in inputs.request}
    out = model.train()(inputs)
    (out.own.divergence.mean() - out.logged["click"].log_yes.mean()).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
    assert all(row.grad is not None and row.grad.ne(0).all() for row in rows.values())


@pytest.mark.parametrize(
    ("request_", "candidate", "message"),
    [
        (
            {"user_effect": 12},
            {"brand_id": 4, "title_tokens": 8},
            "the vectors of an item need one width, 8 as of model.taste or the widest table; got",
        ),
        ({"device_effect": 4}, {}, "no occurrences are counted for device_effect; valid: user_effect, query_effect"),
        ({"user_effect": 8}, {}, "a row of user_effect is 8 wide, and 4 are read: mean and width of 2 + 0"),
    ],
)
def test_widths_that_do_not_fit_are_refused(request_: dict[str, int], candidate: dict[str, int], message: str) -> None:
    def nothing() -> None:
        raise AssertionError("it reads no text")

    given = Given(Widths(request_, candidate, {}), GRADES, (1.0, 3.0), 10, (), nothing, nothing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape(message)):
        MixedEffects.build(given, position_bias=True, position_count=5, relevance=False, posterior={}, taste=0)


@pytest.fixture
def sums() -> dict[str, torch.Tensor]:
    """Of two requests' users and queries: of the second user nothing was seen."""
    torch.manual_seed(1)
    x = torch.randn(2, 30, 2 + RANK)
    e, surplus = torch.rand(2, 30), torch.randn(2, 30)
    upper = torch.triu_indices(2 + RANK, 2 + RANK)
    information = torch.einsum("rn,rni,rnj->rij", e * (1 - e), x, x)
    user = torch.cat([torch.einsum("rn,rni->ri", surplus, x), information[:, upper[0], upper[1]]], dim=1)
    user[1] = 0
    query = torch.tensor([[0.5, -1.0, 2.0, 0.25, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    return {"user_sums": user, "query_sums": query}


def test_users_and_queries_are_inferred_where_there_are_sums(inputs: Inputs, sums: dict[str, torch.Tensor]) -> None:
    rows = {name: dim for name, dim in EFFECTS.items() if name not in ("user_effect", "query_effect")}
    posterior = {name: EFFECTS[name] for name in ("user_effect", "query_effect")}
    options = {"rank": RANK, "level_grades": GRADES, "grade_range": (1.0, 3.0), "posterior": posterior}
    model = MixedEffects(rows, ["brand_id", "title_tokens"], **options).eval()
    model.reports_parts = True
    with torch.no_grad():
        model.effects["user_effect"].log_sd.copy_(torch.tensor([0.5, 1.0, 2.0, 0.3]).log())
    out = model(replace(inputs, request=inputs.request | sums))
    for name, D in posterior.items():
        variance = model.variance(name).double()
        for r in (0, 1):
            row = sums[name.replace("effect", "sums")][r].double()
            information = torch.zeros(D, D, dtype=torch.double)
            information[torch.triu_indices(D, D)[0], torch.triu_indices(D, D)[1]] = row[D:]
            information = information + information.triu(1).T
            covariance = torch.linalg.inv(information + torch.diag(1 / variance))
            b = covariance @ row[:D]
            for c in (2 * r, 2 * r + 1):
                expected = (b * out.own.x[c, :D].double()).sum()
                torch.testing.assert_close(out.own.by_effect[name][c].double(), expected, atol=1e-5, rtol=1e-5)
            slope = name.replace("effect", "slope")
            torch.testing.assert_close(out.parts[slope][2 * r].double(), b[1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(out.parts[f"{slope}_sd"][2 * r].double(), covariance[1, 1].sqrt(), atol=1e-5, rtol=1e-5)
    assert not out.own.by_effect["user_effect"][2:].any()  # exactly nothing of whom nothing was seen
    assert not model.train()(replace(inputs, request=inputs.request | sums)).own.by_effect["query_effect"][2:].any()


def test_a_relevance_side_says_what_an_ungraded_candidate_is_and_learns_from_no_click(inputs: Inputs) -> None:
    match = TextMatch(idf=torch.full((50,), 2.0), is_number=torch.zeros(50, dtype=torch.bool))
    relevance = TextRelevance(None, match, [8], num_levels=4)
    options = {"rank": RANK, "level_grades": GRADES, "grade_range": (1.0, 3.0), "relevance": relevance}
    model = MixedEffects(EFFECTS, ["brand_id", "title_tokens"], **options).train()
    texts = {
        "query": Texts(torch.tensor([[7, 8], [9, 0]]), rows=torch.tensor([0, 1])),
        "title": Texts(torch.tensor([[7, 5], [8, 6], [9, 9]]), rows=torch.tensor([0, 1, 1, 2])),
    }
    out = model(replace(inputs, texts=texts))
    expected = out.own.text.relevance.log_pi.exp() @ torch.tensor(GRADES)
    torch.testing.assert_close(out.own.x[2, 1], expected[2] - 2.0)  # neither a grade nor a prediction
    torch.testing.assert_close(out.own.x[1, 1], torch.tensor((1.25 + 2.5) / 2 - 2.0))  # a predicted one
    out.logged["click"].log_yes.sum().backward()
    assert all(weight.grad is None for weight in relevance.parameters())
    swapped = out.own.swapped()
    assert swapped.foreign.tolist() == [True] * 4  # half a batch away stands the other request
    assert swapped.log_pi.shape == (4, 4)
    with pytest.raises(ValueError, match="a ranker without a relevance side knows no level of a swapped title"):
        replace(out.own, model=MixedEffects(EFFECTS, [], rank=0, level_grades=GRADES, grade_range=(1.0, 3.0))).swapped()
