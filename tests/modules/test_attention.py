import pytest
import torch

from prectr_torchrec.modules import CandidateSlots, TargetAttention


def attention() -> TargetAttention:
    torch.manual_seed(0)
    module = TargetAttention(6, 5, 7, dim=8, num_heads=2)
    torch.nn.init.normal_(module.prior_key)
    torch.nn.init.normal_(module.prior_value)
    return module


def inputs(requests: int = 3, slots: int = 4, events: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(requests, slots, 6), torch.randn(requests, events, 5), torch.randn(requests, events, 7)


def test_equals_a_loop_over_heads_and_events() -> None:
    module = attention()
    target, key, value = inputs()
    lengths = torch.tensor([0, 2, 5])
    out = module(target, key, value, lengths)
    for r, length in enumerate(lengths.tolist()):
        keys = torch.cat([module.prior_key[None], module.key(key[r, :length])])
        values = torch.cat([module.prior_value[None], module.value(value[r, :length])])
        for p in range(4):
            query = module.target(target[r, p])
            heads = [((query[h] * keys[:, h]).sum(1) / 4**0.5).softmax(0) @ values[:, h] for h in (slice(0, 4), slice(4, 8))]
            torch.testing.assert_close(out[r, p], torch.cat(heads))


def test_empty_history_returns_the_prior() -> None:
    module = attention()
    target, key, value = inputs()
    out = module(target, key, value, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(out, module.prior_value.expand(3, 4, 8))


def test_events_beyond_the_length_have_no_part() -> None:
    module = attention()
    target, key, value = inputs()
    lengths = torch.tensor([1, 3, 0])
    out = module(target, key, value, lengths)
    key[0, 1:], value[1, 3:], key[2] = 99.0, -99.0, 99.0
    torch.testing.assert_close(module(target, key, value, lengths), out)


def test_no_event_slots_at_all() -> None:
    module = attention()
    target, key, value = inputs(events=0)
    torch.testing.assert_close(module(target, key, value, torch.zeros(3, dtype=torch.long)), module.prior_value.expand(3, 4, 8))


def test_weights_are_those_of_the_output_and_padding_has_none() -> None:
    module = attention()
    target, key, value = inputs()
    lengths = torch.tensor([0, 2, 5])
    weights = module.weights(target, key, lengths)
    assert weights.shape == (3, 2, 4, 6)
    torch.testing.assert_close(weights.sum(3), torch.ones(3, 2, 4))
    assert weights[0, :, :, 1:].eq(0).all() and weights[1, :, :, 3:].eq(0).all()
    values = torch.cat([module.prior_value.expand(3, 1, -1), module.value(value)], dim=1).unflatten(2, (2, 4)).transpose(1, 2)
    expected = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(module(target, key, value, lengths), expected)


@pytest.mark.parametrize("length", [0, 3])
def test_a_batch_of_one_request_and_one_candidate_is_that_of_the_whole(length: int) -> None:
    module = attention()
    target, key, value = inputs()
    whole = module(target, key, value, torch.tensor([5, length, 1]))
    alone = module(target[1:2, :1], key[1:2], value[1:2], torch.tensor([length]))
    torch.testing.assert_close(alone, whole[1:2, :1])
    alone.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_dim_must_divide_among_the_heads() -> None:
    with pytest.raises(ValueError, match="dim 9 is not divisible by num_heads 2"):
        TargetAttention(6, 5, 7, dim=9, num_heads=2)


def test_slots_bring_every_candidate_back_to_its_row() -> None:
    request = torch.tensor([0, 0, 0, 2, 2, 3, 3, 3])
    weight = torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0])
    slots = CandidateSlots(request, weight, 4)
    rows = torch.arange(16.0).view(8, 2)
    scattered = slots.scatter(rows)
    assert scattered.shape == (4, 3, 2)
    assert scattered[1].eq(0).all()
    torch.testing.assert_close(scattered[2, :2], rows[3:5])
    torch.testing.assert_close(slots.gather(scattered)[:6], rows[:6])


def test_slots_may_have_more_room_than_candidates() -> None:
    request, weight, rows = torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 1, 1, 0]), torch.randn(4, 2)
    counted, given = CandidateSlots(request, weight, 2), CandidateSlots(request, weight, 2, most_candidates=3)
    scattered = given.scatter(rows)
    assert scattered[:, :2].equal(counted.scatter(rows)) and scattered[:, 2].eq(0).all()
    assert given.gather(scattered)[:3].equal(rows[:3])


def test_slots_of_a_batch_of_nothing_but_padding() -> None:
    slots = CandidateSlots(torch.full((3,), 1), torch.zeros(3), 2)
    assert slots.scatter(torch.ones(3, 2)).eq(0).all()
    assert slots.gather(torch.zeros(2, 1, 2)).shape == (3, 2)
