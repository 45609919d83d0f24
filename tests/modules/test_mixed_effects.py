"""Mixed effects: the formula, the prior, and what is drawn."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from prectr_torchrec.modules import (
    Examination,
    GaussianEffect,
    GaussianTitles,
    Given,
    Inputs,
    Label,
    TextMatch,
    TextRelevance,
    Texts,
    Widths,
    effects_posterior,
    expected_log_probability,
    expected_probability,
)
from prectr_torchrec.modules.gaussian_effects import LOG_NARROW
from prectr_torchrec.modules.losses.prior import Prior
from prectr_torchrec.modules.rankers.mixed_effects import MixedEffects

RANK = 2
GRADES = [1.25, 1.8, 2.5, 2.9]
TASTE_SD = 0.2
TASTES = ["brand_id_taste"]
EFFECTS = {"user_effect": 2 + RANK, "query_effect": 2, "group_effect": 2, "item_effect": 2}


@pytest.fixture
def model() -> MixedEffects:
    options = {"rank": RANK, "level_grades": GRADES, "grade_range": (1.0, 3.0), "position": Examination(50)}
    model = MixedEffects(EFFECTS, TASTES, offsets=Widths({"device": 4, "tags": 4}, {"tags": 3}, {}), **options)
    with torch.no_grad():
        model.by_grade.copy_(torch.tensor([-2.0, -1.0, 0.0, 0.5]))
        model.position.logit[:3] = torch.tensor([9.0, 0.5, -1.0])
    return model.eval()


@pytest.fixture
def inputs() -> Inputs:
    """Two requests with two candidates each: graded, predicted, nothing known, and graded between knots."""
    torch.manual_seed(0)
    request = {name: torch.randn(2, 2 * dim) for name, dim in EFFECTS.items() if name != "item_effect"}
    request |= {"user_trained": torch.tensor([[10.0], [0.0]]), "query_trained": torch.tensor([[4.0], [5.0]])}
    request |= {"group_trained": torch.tensor([[20.0], [8.0]]), "device": torch.randn(2, 4), "tags": torch.randn(2, 4)}
    candidate = {
        "item_effect": torch.randn(4, 4),
        "brand_id_taste": torch.randn(4, 2 * RANK),
        "brand_id_trained": torch.tensor([[2.0], [5.0], [0.0], [1.0]]),
        "tags": torch.randn(4, 3),
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
        vector, width = inputs.candidate["brand_id_taste"][c].split(RANK)
        x = torch.cat([torch.tensor([1.0, grade - 2.0]), vector])
        rows = {name: inputs.rows([name])[c] for name in EFFECTS}
        sigma = {name: torch.tensor([1.0, 1.0, TASTE_SD, TASTE_SD])[:dim] for name, dim in EFFECTS.items()}
        of_request = [inputs.request[name][inputs.candidate_request[c]].sum() for name in ("device", "tags")]
        worth = sum(of_request) + inputs.candidate["tags"][c].sum()
        z = f + worth + sum((rows[name][:dim] * sigma[name] * x[:dim]).sum() for name, dim in EFFECTS.items())
        variance = sum(
            ((rows[name][dim:] + LOG_NARROW).exp() * sigma[name] * x[:dim]).square().sum() for name, dim in EFFECTS.items()
        )
        user = rows["user_effect"]
        spread = torch.cat([torch.zeros(2), (width + LOG_NARROW).exp()])
        user_spread = (user[: 2 + RANK].square() + (2 * (user[2 + RANK :] + LOG_NARROW)).exp()) * (
            sigma["user_effect"] * spread
        ) ** 2
        variance = variance + user_spread.sum()
        expected = expected_probability(z[None], variance[None]).log_yes[0]
        torch.testing.assert_close(out.ranking["click"].log_yes[c], expected)
        seen = [1.0, 1.0, torch.tensor(-1.0).sigmoid()][int(inputs.candidate["position"][c])]
        torch.testing.assert_close(out.logged["click"].log_yes[c].exp(), seen * expected.exp())
        torch.testing.assert_close(out.own.examination[c], torch.as_tensor(seen))
        torch.testing.assert_close(out.own.x[c], x)
    scaled = rows_of(inputs)[1] * torch.tensor([1.0, 1.0, TASTE_SD, TASTE_SD])
    torch.testing.assert_close(out.own.by_effect["user_effect"][1], (scaled * out.own.x[1]).sum())


def rows_of(inputs: Inputs) -> torch.Tensor:
    """(C, 2 + rank) means of the users' rows."""
    return inputs.rows(["user_effect"])[:, : 2 + RANK]


def test_each_row_brings_its_share_of_the_divergence_from_its_prior(model: MixedEffects, inputs: Inputs) -> None:
    with torch.no_grad():
        model.effects["query_effect"].log_sd.copy_(torch.tensor([0.5, 2.0]).log())
    found = model.train()(inputs).own.divergence
    expected = torch.zeros(4)
    for name, dim in EFFECTS.items():
        rows = inputs.rows([name])
        effect = model.effects[name]
        sigma = effect.prior_sd(rows).detach()
        row = Normal(rows[:, :dim] * sigma, (rows[:, dim:] + LOG_NARROW).exp() * sigma)
        shares = inputs.rows([name.replace("effect", "trained")]).squeeze(1).clamp(min=1)
        expected += kl_divergence(row, Normal(torch.zeros(dim), sigma)).sum(1) / shares
    mean, width = inputs.candidate["brand_id_taste"].split(RANK, dim=1)
    vectors = kl_divergence(Normal(mean, (width + LOG_NARROW).exp()), Normal(torch.zeros(RANK), torch.ones(RANK))).sum(1)
    expected += vectors / torch.tensor([2.0, 5.0, 1.0, 1.0])
    torch.testing.assert_close(found, expected)
    labels = {"click": Label(torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 1.0]))}
    loss = Prior()(model(inputs), inputs, labels)["prior"]
    torch.testing.assert_close(loss, (expected[0] + expected[3]) / 2)
    assert Prior().eval()(model(inputs), inputs, labels) == {}


def test_rows_are_in_units_of_their_prior() -> None:
    """The divergence does not depend on sigma; the coefficients scale with it, but for those whose sigma is fixed."""
    rows = torch.tensor([[0.5, -1.0, 2.0, 0.3, -0.2, 0.1]])
    effect, narrow = GaussianEffect(3, fixed=1, fixed_sd=0.2), GaussianEffect(3, sd=0.5, fixed=1, fixed_sd=0.2)
    wide, half = effect(rows), narrow(rows)
    torch.testing.assert_close(wide.divergence, half.divergence)
    torch.testing.assert_close(half.mean, wide.mean * torch.tensor([0.5, 0.5, 1.0]))
    torch.testing.assert_close(half.variance, wide.variance * torch.tensor([0.25, 0.25, 1.0]))
    torch.testing.assert_close(wide.mean[:, 2], torch.tensor([0.4]))
    (wide.mean.sum() + wide.divergence.sum()).backward()
    assert effect.log_sd is not None and effect.log_sd.grad is not None
    torch.testing.assert_close(effect.log_sd.grad, torch.tensor([0.5, -1.0]))
    assert GaussianEffect(2, fixed=2).log_sd is None


def test_a_gaussian_logit_has_the_likelihood_and_the_probability_of_many_draws() -> None:
    mean, variance = torch.tensor([-3.0, 0.2, 2.0]), torch.tensor([0.0, 1.0, 4.0])
    z = mean.double() + variance.double().sqrt() * torch.linspace(-8, 8, 4001).double().unsqueeze(1)
    weight = torch.exp(-torch.linspace(-8, 8, 4001).double().square() / 2).unsqueeze(1)
    weight = weight / weight.sum()
    found = expected_log_probability(mean, variance)
    for log, sign in ((found.log_yes, 1), (found.log_no, -1)):
        exact = (weight * torch.nn.functional.logsigmoid(sign * z)).sum(0)
        torch.testing.assert_close(log.double(), exact, atol=2e-3, rtol=0)
    found = expected_probability(mean, variance)
    torch.testing.assert_close(found.log_yes.exp().double(), (weight * z.sigmoid()).sum(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.log_yes.exp() + found.log_no.exp(), torch.ones(3))


def test_what_is_learned_from_and_what_is_predicted_are_expectations_over_rows_and_vectors(inputs: Inputs) -> None:
    """Against draws of everything that has a prior: rows of effects, of an attribute, and of a title's words."""
    torch.manual_seed(0)
    effects = {"user_effect": 2 + RANK, "item_effect": 2}
    titles = GaussianTitles(50, RANK, words=[5, 6, 7, 9])
    options = {"rank": RANK, "level_grades": GRADES, "grade_range": (1.0, 3.0)}
    model = MixedEffects(effects, TASTES, **options, title=titles).eval()
    with torch.no_grad():
        titles.width.normal_(std=0.5)
    candidate = inputs.candidate | {"brand_id_taste": torch.randn(4, 2 * RANK), "brand_id_trained": torch.full((4, 1), 5.0)}
    tokens, of_candidate = torch.tensor([[7, 5, 3], [8, 6, 0], [9, 9, 8]]), torch.tensor([0, 1, 1, 2])
    inputs = replace(inputs, candidate=candidate, texts={"title": Texts(tokens, rows=of_candidate)})
    found, draws = model(inputs), 400_000
    bare = _logit_of_the_grade(model, inputs)

    def drawn(mean: torch.Tensor, log_sd: torch.Tensor) -> torch.Tensor:
        return mean + (log_sd + LOG_NARROW).exp() * torch.randn(draws, *mean.shape)

    scales = {"user_effect": torch.tensor([1.0, 1.0, TASTE_SD, TASTE_SD]), "item_effect": torch.ones(2)}

    with torch.no_grad():
        for c in range(4):
            words = [int(word) for word in tokens[of_candidate[c]] if int(word) in (5, 6, 7, 9)]
            places = [(5, 6, 7, 9).index(word) for word in words]
            title = drawn(titles.mean[places], titles.width[places]).sum(1) / max(len(places), 1) ** 0.5
            brand = drawn(*candidate["brand_id_taste"][c].split(RANK))
            x = torch.cat([found.own.x[c, :2].expand(draws, 2), title + brand], dim=1)
            user, item = (drawn(*inputs.rows([name])[c].split(dim)) * scales[name] for name, dim in effects.items())
            z = bare[c] + (user * x).sum(1) + (item * x[:, :2]).sum(1)
            assert found.ranking["click"].log_yes[c].exp().item() == pytest.approx(z.sigmoid().mean().item(), abs=4e-3)
            model.train()
            likelihood = model(inputs).logged["click"].log_no[c].item()
            model.eval()
            assert likelihood == pytest.approx(torch.nn.functional.logsigmoid(-z).mean().item(), abs=6e-3)


def _logit_of_the_grade(model: MixedEffects, inputs: Inputs) -> torch.Tensor:
    """(C,) what is left when all rows are zero."""
    model.reports_parts = True
    parts = model(inputs).parts
    return parts["logit_of_means"] - parts["user_effect"] - parts["item_effect"]


@pytest.mark.parametrize("words", [[], [5]])
def test_titles_without_a_word_that_has_a_vector_have_none(words: list[int]) -> None:
    found = GaussianTitles(50, RANK, words=words)(torch.tensor([[7, 8], [0, 0]]))
    assert not found.mean.any() and not found.variance.any() and found.divergence.isfinite().all()


def test_words_bring_their_divergence_spread_over_the_train_part(inputs: Inputs) -> None:
    titles = GaussianTitles(50, RANK, words=[5, 6])
    options = {"rank": RANK, "level_grades": GRADES, "grade_range": (1.0, 3.0)}
    model = MixedEffects({}, TASTES, **options, title=titles)
    model.start_from([1.0], candidates=100)
    candidate = inputs.candidate | {
        "brand_id_taste": torch.zeros(4, 2 * RANK),
        "brand_id_trained": torch.tensor([[2.0], [4.0], [0.0], [1.0]]),
    }
    texts = {"title": Texts(torch.tensor([[7, 5]]), rows=torch.zeros(4, dtype=torch.long))}
    found = model(replace(inputs, candidate=candidate, texts=texts)).own.divergence
    prior = Normal(torch.zeros(RANK), torch.ones(RANK))
    words = kl_divergence(Normal(titles.mean, (titles.width + LOG_NARROW).exp()), prior).sum() / 100
    brand = kl_divergence(Normal(torch.zeros(RANK), torch.full((RANK,), math.exp(LOG_NARROW))), prior).sum()
    torch.testing.assert_close(found, words + brand / torch.tensor([2.0, 4.0, 1.0, 1.0]))


def test_of_whom_nothing_was_learned_no_logit_is_moved(model: MixedEffects, inputs: Inputs) -> None:
    stranger = {**inputs.request, "user_effect": torch.zeros(2, 2 * (2 + RANK))}
    out = model(replace(inputs, request=stranger))
    assert not out.own.by_effect["user_effect"].any()


def test_positions_start_from_their_examination(model: MixedEffects, inputs: Inputs) -> None:
    model.start_from([1.0, 0.5])
    out = model(inputs)
    torch.testing.assert_close(out.own.examination, torch.tensor([1.0, 0.5, 1.0, 0.5]))
    moved = out.logged["click"].log_yes - out.ranking["click"].log_yes
    torch.testing.assert_close(moved, torch.tensor([1.0, 0.5, 1.0, 0.5]).log())


def test_what_is_learned_from_is_the_expected_likelihood_at_the_position(model: MixedEffects, inputs: Inputs) -> None:
    out, z = model.train()(inputs), torch.linspace(-8, 8, 4001)
    weight = torch.exp(-z.square() / 2) / torch.exp(-z.square() / 2).sum()
    mean = out.own.logit[3]
    sd = _sd_of(out.ranking["click"].log_yes[3], mean)
    seen = out.own.examination[3]
    exact = (weight * torch.log1p(-seen * (mean + sd * z).sigmoid())).sum()
    torch.testing.assert_close(out.logged["click"].log_no[3], exact, atol=3e-3, rtol=0)


def _sd_of(expected: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Standard deviation of a Gaussian logit with this mean and expected log probability, by bisection."""
    low, high = torch.tensor(0.0), torch.tensor(8.0)
    for _ in range(40):
        middle = (low + high) / 2
        below = expected_log_probability(mean[None], middle.square()[None]).log_yes[0] > expected
        low, high = (middle, high) if below else (low, middle)
    return low


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
            {"brand_id_taste": 4, "category_id_taste": 8},
            "vectors of items are 8 wide, twice model.taste or as the widest table; got {'brand_id_taste': 4}",
        ),
        ({"device_effect": 4}, {}, "no occurrences are counted for device_effect; valid: user_effect, query_effect"),
        (
            {"user_effect": 8},
            {},
            "a row of user_effect is 8 wide, for mean and width of 4 coefficients; valid: 1 (an offset), 2 (and a slope)",
        ),
    ],
)
def test_widths_that_do_not_fit_are_refused(request_: dict[str, int], candidate: dict[str, int], message: str) -> None:
    def nothing() -> None:
        raise AssertionError("it reads no text")

    given = Given(Widths(request_, candidate, {}), GRADES, (1.0, 3.0), 10, (), nothing, nothing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape(message)):
        MixedEffects.build(given, position_bias=True, position_count=5, relevance=False, posterior={}, taste=0, taste_sd=0.2)


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
    model = MixedEffects(rows, TASTES, **options).eval()
    model.reports_parts = True
    with torch.no_grad():
        model.effects["user_effect"].log_sd.copy_(torch.tensor([0.5, 1.0]).log())
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


@pytest.mark.parametrize("inferred", [False, True], ids=["rows", "inferred"])
def test_a_user_likes_the_words_along_the_own_taste(inputs: Inputs, sums: dict[str, torch.Tensor], inferred: bool) -> None:
    rows, posterior = ({}, {"user_effect": 2 + RANK}) if inferred else ({"user_effect": 2 + RANK}, {})
    titles = GaussianTitles(50, RANK, words=[9, 5])
    options = {"rank": RANK, "level_grades": GRADES, "grade_range": (1.0, 3.0), "title": titles, "posterior": posterior}
    model = MixedEffects(rows, [], **options).eval()
    texts = {"title": Texts(torch.tensor([[5, 0], [9, 0]]), rows=torch.tensor([0, 1, 0, 1]))}
    inputs = replace(inputs, request=inputs.request | sums, texts=texts)
    found, out = model.word_taste(inputs), model(inputs)
    assert found is not None and found.tokens.tolist() == [5, 9] and found.worth.shape == (2, 2)
    x, of = out.own.x.clone(), out.own.by_effect["user_effect"]
    mean = _user_means(model, inputs)
    without = (mean[inputs.candidate_request, :2] * x[:, :2]).sum(1)
    torch.testing.assert_close(of - without, found.worth[[0, 0, 1, 1], [0, 1, 0, 1]])  # titles of one of the words each
    assert not inferred or not found.worth[1].any()
    assert MixedEffects({"user_effect": 2}, [], **{**options, "posterior": {}}).word_taste(inputs) is None


def _user_means(model: MixedEffects, inputs: Inputs) -> torch.Tensor:
    if model.posterior:
        return effects_posterior(inputs.request["user_sums"], model.variance("user_effect")).mean
    return model.effects["user_effect"](inputs.request["user_effect"]).mean


def test_a_relevance_side_says_what_an_ungraded_candidate_is_and_learns_from_no_click(inputs: Inputs) -> None:
    match = TextMatch(idf=torch.full((50,), 2.0), is_number=torch.zeros(50, dtype=torch.bool))
    relevance = TextRelevance(None, match, [8], num_levels=4)
    options = {"rank": RANK, "level_grades": GRADES, "grade_range": (1.0, 3.0), "relevance": relevance}
    model = MixedEffects(EFFECTS, TASTES, **options).train()
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
