import pytest
import torch

from prectr_torchrec.modules import CandidateSlots, Events, PrecisionGate, RelevanceIncentive, RelevancePreference, load_balance

R, L, C, D = 2, 4, 3, 6


def events(lengths: list[int]) -> Events:
    level = torch.randint(0, 5, (R, L))
    return Events(torch.randn(R, L, D), torch.tensor(lengths), level, level % 2, level, torch.rand(R, L) * 1e5)


def preference(**options: object) -> RelevancePreference:
    defaults = {"own": True, "peers": True, "statistics_dim": 5, "num_counts": 4, "dim": 8}
    return RelevancePreference(D, D, 4, **(defaults | options))


def run(module: RelevancePreference, own: Events, peers: Events) -> tuple[torch.Tensor, torch.Tensor]:
    to_request = torch.tensor([0, 1, 1])
    slots = CandidateSlots(to_request, torch.ones(C), R)
    torch.manual_seed(1)
    intent, items, counts = torch.randn(R, D), torch.randn(C, D), torch.rand(R, 4)
    own_statistics = torch.rand(R, 5) * (own.lengths > 0).unsqueeze(1)  # counters are zero where there is no event
    peer_statistics = torch.rand(R, 10) * (peers.lengths > 0).unsqueeze(1)
    out = module(intent, own, items, own, peers, slots, to_request, own_statistics, peer_statistics, counts)
    return out.vector, out.weights


@pytest.mark.parametrize("gate", ["precision", "mlp", "none"])
def test_weights_sum_to_one_and_nothing_is_given_to_what_is_not_there(gate: str) -> None:
    torch.manual_seed(0)
    vector, weights = run(preference(gate=gate), events([0, 3]), events([2, 0]))
    torch.testing.assert_close(weights.sum(1), torch.ones(C))
    assert weights[0, 0] == 0 and weights[0, 1] > 0  # the first request has no history
    assert (weights[1:, 1] == 0).all() and (weights[1:, 0] > 0).all()  # the second has no peers
    assert vector.isfinite().all()


@pytest.mark.parametrize("gate", ["precision", "mlp", "none"])
def test_without_any_event_the_prior_is_the_preference(gate: str) -> None:
    torch.manual_seed(0)
    module = preference(gate=gate)
    torch.nn.init.normal_(module.gate.prior)
    vector, weights = run(module, events([0, 0]), events([0, 0]))
    torch.testing.assert_close(vector, module.gate.prior.expand(C, -1))
    assert weights[:, 2].eq(1).all()


@pytest.mark.parametrize("gate", ["precision", "mlp"])
def test_every_parameter_learns(gate: str) -> None:
    torch.manual_seed(0)
    module = preference(gate=gate)
    vector, _ = run(module, events([4, 1]), events([2, 3]))
    vector.square().sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []


def test_events_beyond_the_length_change_nothing() -> None:
    torch.manual_seed(0)
    module, own, peers = preference(), events([2, 1]), events([1, 2])
    before, _ = run(module, own, peers)
    changed = own._replace(vectors=own.vectors.clone())
    changed.vectors[:, 2:] = 9.0
    changed.vectors[1, 1:] = 9.0
    after, _ = run(module, changed, peers)
    torch.testing.assert_close(after, before)


def test_the_precision_gate_is_a_weighted_mean() -> None:
    gate = PrecisionGate(2, 1, "none")
    own, peers = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 6.0]])
    out = gate(own, peers, torch.ones(1, 2), torch.zeros(1, 1))
    torch.testing.assert_close(out.vector, torch.tensor([[1.0, 2.0]]))


@pytest.mark.parametrize("num_values", [1, 4])
def test_incentive_raises_lowers_or_leaves_and_repeats(num_values: int) -> None:
    torch.manual_seed(0)
    module = RelevanceIncentive(6, 8, num_values).train()
    relevance, preference = torch.randn(5, 6), torch.randn(5, 8)
    out = module(relevance, preference)
    assert out.tau.shape == (5, num_values)
    torch.testing.assert_close(out.gate.sum(1), torch.ones(5))
    torch.testing.assert_close(module(relevance, preference).tau, out.tau)  # deterministic in training too
    with torch.no_grad():
        module.gate.weight.zero_()
        for expert, sign in enumerate((1, -1, 0)):
            module.gate.bias.copy_(torch.nn.functional.one_hot(torch.tensor(expert), 3) * 50.0)
            assert (module(relevance, preference).tau.sign() == sign).all() or sign == 0
        assert module(relevance, preference).tau.abs().max() < 1e-6


def test_load_balance_is_zero_for_equal_loads_and_ignores_padding() -> None:
    even = torch.full((2, 3), 1 / 3)
    one = torch.tensor([[1.0, 0.0, 0.0]])
    assert load_balance(even, torch.ones(2)).item() == pytest.approx(0.0)
    assert load_balance(one, torch.ones(1)).item() == pytest.approx(2.0)
    assert load_balance(torch.cat([even, one]), torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(0.0)
    assert load_balance(one, torch.zeros(1)).item() == 0.0
