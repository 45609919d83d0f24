import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from prectr_torchrec.modules import LevelMixture, grade_distributions, known_level_log_probabilities, label_chain


def random_inputs(rows: int = 6, levels: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, levels, generator=generator).log_softmax(1), torch.randn(rows, levels, generator=generator)


def test_probability_is_the_expectation_over_levels() -> None:
    log_pi, z = random_inputs()
    probability = LevelMixture()(log_pi, z)
    torch.testing.assert_close(probability.log_yes.exp(), (log_pi.exp() * z.sigmoid()).sum(1))
    torch.testing.assert_close(probability.log_yes.exp() + probability.log_no.exp(), torch.ones(6))


def test_golden_values() -> None:
    log_pi = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    z = torch.tensor([[0.0, 2.0], [-1.0, 1.0]])
    torch.testing.assert_close(LevelMixture()(log_pi, z).log_yes.exp(), torch.tensor([0.6903985, 0.3151531]))


def test_extreme_logits_stay_finite_with_a_gradient() -> None:
    log_pi = torch.tensor([[-200.0, 0.0]])
    z = torch.tensor([[300.0, -300.0]], requires_grad=True)
    probability = LevelMixture()(log_pi, z)
    (-probability.log_yes).sum().backward()
    assert probability.log_yes.isfinite().all() and probability.logit.isfinite().all()
    assert z.grad is not None and z.grad.isfinite().all() and z.grad.abs().sum() > 0


def test_one_level_is_a_plain_click_logit() -> None:
    z = torch.tensor([[0.3], [-2.0]])
    probability = LevelMixture()(torch.zeros(2, 1), z)
    torch.testing.assert_close(probability.logit, z[:, 0])
    torch.testing.assert_close(probability.log_yes, F.logsigmoid(z[:, 0]))


def test_known_level_replaces_the_prediction_and_a_missing_one_keeps_it() -> None:
    log_pi, _ = random_inputs(rows=3)
    known = known_level_log_probabilities(log_pi, torch.tensor([0, 1, 4]))
    torch.testing.assert_close(known[0], log_pi[0])
    torch.testing.assert_close(known[1:].exp(), torch.eye(4)[[0, 3]], atol=1e-5, rtol=0)
    assert known.isfinite().all()
    torch.testing.assert_close(known.exp().sum(1), torch.ones(3))


def test_a_distribution_stands_where_no_level_is_known() -> None:
    log_pi = torch.randn(3, 4).log_softmax(1)
    distribution = torch.tensor([[0.25, 0.25, 0.5, 0.0], [0.25, 0.25, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    known = known_level_log_probabilities(log_pi, torch.tensor([0, 2, 0]), distribution)
    torch.testing.assert_close(known[0].exp(), distribution[0], atol=2e-3, rtol=0)
    assert known[1].argmax() == 1 and known[1].exp().max() > 0.99 and known.isfinite().all()
    torch.testing.assert_close(known[2], log_pi[2])
    torch.testing.assert_close(known.exp().sum(1), torch.ones(3))


def test_a_grade_lies_between_the_two_levels_next_to_it() -> None:
    level_grades = torch.tensor([1.0, 2.0, 2.5, 3.0])
    grades = torch.tensor([1.0, 1.25, 2.0, 2.4, 3.0])
    distributions = grade_distributions(grades, level_grades)
    torch.testing.assert_close(distributions @ level_grades, grades, atol=1e-6, rtol=0)
    torch.testing.assert_close(distributions[1], torch.tensor([0.75, 0.25, 0, 0]))
    assert ((distributions > 0).sum(dim=1) <= 2).all()


def test_a_grade_beyond_the_ends_is_the_level_there_and_no_grade_is_no_number() -> None:
    distributions = grade_distributions(torch.tensor([0.5, 9.0, torch.nan]), torch.tensor([1.0, 2.0, 3.0]))
    assert distributions[:2].tolist() == [[1, 0, 0], [0, 0, 1]] and distributions[2].isnan().all()


@pytest.mark.parametrize("levels", [2, 4])
def test_distributions_of_grades_are_those_of_interpolation(levels: int) -> None:
    grades, level_grades = torch.linspace(0.5, 3.5, 61), torch.tensor([1.25, 1.8, 2.5, 2.9])[:levels]
    place = np.interp(grades.numpy(), level_grades.numpy(), np.arange(levels))
    expected = np.maximum(1 - np.abs(place[:, None] - np.arange(levels)), 0).astype(np.float32)
    torch.testing.assert_close(grade_distributions(grades, level_grades), torch.from_numpy(expected), atol=1e-6, rtol=0)


def chained(*logits: list[float]) -> dict[str, torch.Tensor]:
    return {label: torch.tensor([row]) for label, row in zip(("click", "cart", "order"), logits, strict=True)}


AFTER = {"order": "cart", "cart": "click"}


def test_a_chain_is_the_product_along_it_at_each_level_by_hand() -> None:
    log_pi = torch.tensor([[0.75, 0.25]]).log()
    levels = label_chain(chained([0.0, math.log(3)], [math.log(1 / 3), 0.0], [0.0, math.log(4)]), AFTER)
    found = {label: LevelMixture().mean(log_pi, p) for label, p in levels.items()}
    # clicks 1/2 and 3/4, carts of these 1/4 and 1/2, orders of these 1/2 and 4/5
    expected = {
        "click": 0.75 / 2 + 0.25 * 3 / 4,
        "cart": 0.75 / 2 / 4 + 0.25 * 3 / 4 / 2,
        "order": 0.75 / 2 / 4 / 2 + 0.25 * 3 / 4 / 2 * 4 / 5,
    }
    assert set(found) == set(expected)
    for label, p in expected.items():
        torch.testing.assert_close(found[label].log_yes.exp(), torch.tensor([p]))
        torch.testing.assert_close(found[label].log_no.exp(), torch.tensor([1 - p]))


def test_the_click_of_a_chain_is_what_it_is_without_one_bit_for_bit() -> None:
    log_pi, z = random_inputs()
    alone, beside = LevelMixture()(log_pi, z), label_chain({"click": z, "cart": z, "order": z}, AFTER)["click"]
    mixed = LevelMixture().mean(log_pi, beside)
    assert alone.log_yes.equal(mixed.log_yes) and alone.log_no.equal(mixed.log_no) and mixed.log_stop is None


def test_both_outcomes_of_a_long_chain_are_those_of_the_naive_product_in_double_precision() -> None:
    torch.manual_seed(0)
    log_pi = torch.randn(64, 4).log_softmax(1)
    logits = {label: 4 * torch.randn(64, 4) for label in ("click", "cart", "order")}
    order = LevelMixture().mean(log_pi, label_chain(logits, AFTER)["order"])
    product = torch.stack([z.double().sigmoid() for z in logits.values()]).prod(0)
    naive = (log_pi.double().exp() * product).sum(1)
    torch.testing.assert_close(order.log_yes.double(), naive.log(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(order.log_no.double(), torch.log1p(-naive), atol=1e-6, rtol=1e-5)
    click, cart, never = logits["click"].double(), logits["cart"].double(), -logits["order"].double()
    stopped = (log_pi.double().exp() * click.sigmoid() * cart.sigmoid() * never.sigmoid()).sum(1)
    assert order.log_stop is not None
    torch.testing.assert_close(order.log_stop.double(), stopped.log(), atol=1e-5, rtol=1e-5)


def test_extreme_logits_of_a_chain_stay_finite_with_a_gradient_for_every_head() -> None:
    logits = {label: z.requires_grad_() for label, z in chained([300.0, -300.0], [200.0, -200.0], [300.0, -300.0]).items()}
    order = LevelMixture().mean(torch.tensor([[-2000.0, 0.0]]), label_chain(logits, AFTER)["order"])
    assert order.log_stop is not None
    (-order.log_yes - order.log_no - order.log_stop).sum().backward()
    assert all(x.isfinite().all() for x in (order.log_yes, order.log_no, order.log_stop, order.logit))
    assert all(z.grad is not None and z.grad.isfinite().all() and z.grad.abs().sum() > 0 for z in logits.values())


def test_the_gradients_of_a_chain_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    log_pi = torch.randn(3, 4, dtype=torch.float64).log_softmax(1)
    logits = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def both(*z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chain = label_chain(dict(zip(("click", "cart", "order"), z, strict=True)), AFTER)
        return tuple(LevelMixture().mean(log_pi, chain["order"]))  # type: ignore[return-value]

    assert torch.autograd.gradcheck(both, logits)
