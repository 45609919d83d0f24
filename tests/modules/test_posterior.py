import pytest
import torch
from past_events import changed, past
from torch import Tensor

from prectr_torchrec.modules import CandidateSlots, ComparedEvents, GaussianPosterior, Taste, TitleBag


def test_nothing_seen_gives_the_prior() -> None:
    events, none = torch.randn(2, 3, 4), torch.zeros(2, 3)
    out = GaussianPosterior()(events, none, none, torch.randn(2, 5, 4))
    torch.testing.assert_close(out.mean, torch.zeros(2, 5))
    torch.testing.assert_close(out.variance, torch.ones(2, 5))


def test_posterior_golden_value() -> None:
    # one event [2], surplus 0.5, information 0.25, precision 3: mean 0.5 * 2 / (3 + 0.25 * 4), applied to target [3]
    out = GaussianPosterior(precision=3.0)(
        torch.tensor([[[2.0]]]), torch.tensor([[0.5]]), torch.tensor([[0.25]]), torch.tensor([[[3.0]]])
    )
    assert out.mean.item() == pytest.approx(0.75)
    assert out.variance.item() == pytest.approx(0.75)


def test_posterior_recovers_the_preference_that_made_the_surplus() -> None:
    torch.manual_seed(0)
    events, truth = torch.randn(1, 4000, 5), torch.tensor([1.0, -0.5, 0.0, 0.3, 0.8])
    rate = 0.2
    click = (torch.rand(1, 4000) < (torch.tensor(rate).logit() + 0.5 * events @ truth).sigmoid()).float()
    information = torch.full((1, 4000), rate * (1 - rate))
    out = GaussianPosterior(precision=1.0)(events, click - rate, information, torch.eye(5).unsqueeze(0))
    assert torch.corrcoef(torch.stack([out.mean[0], truth]))[0, 1] > 0.97
    assert (out.variance < 0.01).all()


def test_padding_events_say_nothing() -> None:
    torch.manual_seed(0)
    posterior, events, targets = GaussianPosterior(), torch.randn(1, 3, 4), torch.randn(1, 2, 4)
    surplus, information = torch.tensor([[0.5, -0.2, 0.0]]), torch.tensor([[0.2, 0.2, 0.0]])
    whole = posterior(events, surplus, information, targets)
    cut = posterior(events[:, :2], surplus[:, :2], information[:, :2], targets)
    torch.testing.assert_close(whole.mean, cut.mean)


def test_a_batch_without_event_slots_gives_the_prior() -> None:
    none = torch.zeros(1, 0)
    out = GaussianPosterior()(torch.zeros(1, 0, 4), none, none, torch.randn(1, 2, 4))
    assert out.mean.eq(0).all()
    torch.testing.assert_close(out.variance, torch.ones(1, 2))


def test_title_bag_ignores_padding_and_special_tokens() -> None:
    bag = TitleBag(20, 4)
    out = bag(torch.tensor([[2, 7, 9, 0], [7, 9, 0, 0], [0, 0, 0, 0]]))
    torch.testing.assert_close(out[0], out[1])
    torch.testing.assert_close(out[0], bag.token.weight[[7, 9]].sum(0) / 2**0.5)
    assert out[2].eq(0).all()


def events(vectors: Tensor, lengths: list[int], level: Tensor, click: Tensor, position: Tensor) -> ComparedEvents:
    return past(vectors, torch.tensor(lengths), level=level, click=click, position=position, age=torch.ones_like(level))


def slots(requests: list[int], num_requests: int) -> CandidateSlots:
    return CandidateSlots(torch.tensor(requests), torch.ones(len(requests)), num_requests)


def test_taste_likes_what_was_clicked_and_dislikes_what_was_skipped() -> None:
    torch.manual_seed(0)
    taste = Taste(10, dim=4, num_levels=4)
    kinds = torch.randn(2, 4)
    vectors = kinds[torch.tensor([[0, 0, 1, 1]])]
    click = torch.tensor([[1, 1, 0, 0]])
    level = torch.full((1, 4), 3)
    out = taste(kinds, slots([0, 0], 1), events(vectors, [4], level, click, torch.ones_like(level)))
    assert out.mean[0] > 0 > out.mean[1]


def test_taste_without_history_says_nothing_for_any_number_of_candidates() -> None:
    taste = Taste(10, dim=4, num_levels=4)
    items = taste.title(torch.randint(5, 10, (3, 6)))
    none = torch.zeros(2, 5, dtype=torch.long)
    out = taste(items, slots([0, 1, 1], 2), events(torch.randn(2, 5, 4), [0, 0], none, none, none))
    assert out.mean.eq(0).all() and out.mean.shape == (3,)
    torch.testing.assert_close(out.variance, torch.ones(3))


def test_taste_reads_no_event_beyond_the_length_and_an_ungraded_one_like_any_other() -> None:
    torch.manual_seed(0)
    taste, vectors, kinds = Taste(10, dim=4, num_levels=4), torch.randn(1, 4, 4), torch.randn(2, 4)
    torch.nn.init.normal_(taste.level_logit)
    level, click, one = torch.tensor([[0, 3, 1, 2]]), torch.tensor([[1, 0, 1, 0]]), torch.ones(1, 4).long()
    own = events(vectors, [2], level, click, one)
    out = taste(kinds, slots([0, 0], 1), own)
    beyond = own._replace(vectors=torch.cat([vectors[:, :2], vectors[:, 2:] + 9], dim=1))
    beyond = changed(beyond, click=torch.tensor([[1, 0, 0, 1]]))
    torch.testing.assert_close(taste(kinds, slots([0, 0], 1), beyond).mean, out.mean)
    graded = changed(own, level=torch.tensor([[4, 3, 1, 2]]))
    assert out.mean.isfinite().all() and not torch.allclose(taste(kinds, slots([0, 0], 1), graded).mean, out.mean)


def test_every_parameter_of_taste_learns() -> None:
    torch.manual_seed(0)
    taste = Taste(10, dim=4, num_levels=4)
    items = taste.title(torch.randint(5, 10, (3, 6)))
    level = torch.randint(0, 5, (2, 5))
    out = taste(items, slots([0, 1, 1], 2), events(torch.randn(2, 5, 4), [5, 2], level, level % 2, level + 1))
    out.mean.square().sum().backward()
    assert [n for n, p in taste.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_what_cannot_be_inferred_is_no_number_and_no_failure() -> None:
    events, targets = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    events[1, 0, 0] = torch.nan
    out = GaussianPosterior()(events, torch.ones(2, 3), torch.ones(2, 3), targets)
    assert out.mean[0].isfinite().all() and out.mean[1].isnan().all()


def test_taste_is_the_posterior_of_its_surplus() -> None:
    torch.manual_seed(0)
    taste, vectors, kinds = Taste(10, dim=4, num_levels=4), torch.randn(1, 5, 4), torch.randn(2, 4)
    torch.nn.init.normal_(taste.level_logit)
    torch.nn.init.normal_(taste.position_logit)
    level, click, position = torch.tensor([[1, 4, 0, 2, 3]]), torch.tensor([[1, 0, 1, 0, 1]]), torch.tensor([[0, 1, 3, 99, 2]])
    out = taste(kinds, slots([0, 0], 1), events(vectors, [4], level, click, position))
    rate = (taste.level_logit[level] + taste.position_logit[position.clamp(max=10)]).sigmoid()[:, :4]
    expected = taste.posterior(vectors[:, :4], click[:, :4] - rate, rate * (1 - rate), kinds.unsqueeze(0))
    torch.testing.assert_close(out.mean, expected.mean[0])
    torch.testing.assert_close(out.variance, expected.variance[0])


def test_a_title_without_words_is_all_unknown() -> None:
    out = GaussianPosterior()(torch.randn(1, 3, 4), torch.ones(1, 3), torch.ones(1, 3), torch.zeros(1, 2, 4))
    assert out.mean.tolist() == [[0, 0]] and out.variance.tolist() == [[1, 1]]
