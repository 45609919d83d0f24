import pytest
import torch
from past_events import past
from torch.nn.functional import softplus

from prectr_torchrec.modules import (
    CandidateSlots,
    ComparedEvents,
    PrecisionGate,
    RelevanceIncentive,
    RelevancePreference,
    load_balance,
)

R, L, C, D = 2, 4, 3, 6


def events(lengths: list[int]) -> ComparedEvents:
    level, vectors = torch.randint(0, 5, (R, L)), torch.randn(R, L, D)
    age = torch.rand(R, L) * 1e5
    return past(vectors, torch.tensor(lengths), level=level, click=level % 2, position=level, age=age)


def preference(**options: object) -> RelevancePreference:
    defaults = {"own": True, "peers": True, "statistics_dim": 5, "num_counts": 4, "dim": 8}
    return RelevancePreference(D, D, 4, **(defaults | options))


def run(module: RelevancePreference, own: ComparedEvents, peers: ComparedEvents) -> tuple[torch.Tensor, torch.Tensor]:
    to_request = torch.tensor([0, 1, 1])
    slots = CandidateSlots(to_request, torch.ones(C), R)
    torch.manual_seed(1)
    intent, items, counts = torch.randn(R, D), torch.randn(C, D), torch.rand(R, 4)
    own_statistics = torch.rand(R, 5) * (own.events.lengths > 0).unsqueeze(1)  # counters are zero where there is no event
    peer_statistics = torch.rand(R, 10) * (peers.events.lengths > 0).unsqueeze(1)
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


def test_a_prior_of_the_least_precision_is_still_all_there_is() -> None:
    gate = PrecisionGate(4, 2, "precision")
    torch.nn.init.normal_(gate.prior)
    torch.nn.init.constant_(gate.score[-1].bias, -40.0)
    out = gate(torch.randn(3, 4), torch.randn(3, 4), torch.zeros(3, 2), torch.zeros(3, 2))
    assert out.vector.equal(gate.prior.expand(3, 4))


def experts(module: RelevanceIncentive, relevance: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """The mixture of raise and lower at a preference, written out."""
    a = module.relevance(relevance)
    w = torch.cat([a, r, a - r, a * r], dim=1)
    gate = module.gate(w).softmax(1)
    return gate[:, :1] * softplus(module.raise_(w)) - gate[:, 1:2] * softplus(module.lower(w))


@pytest.mark.parametrize("num_values", [1, 4])
def test_the_incentive_is_what_the_experts_give_beyond_the_prior_and_repeats(num_values: int) -> None:
    torch.manual_seed(0)
    module = RelevanceIncentive(6, 8, num_values).train()
    relevance, preference, prior = torch.randn(5, 6), torch.randn(5, 8), torch.randn(8)
    out = module(relevance, preference, prior)
    assert out.tau.shape == (5, num_values)
    expected = experts(module, relevance, preference) - experts(module, relevance, prior.expand(5, 8))
    torch.testing.assert_close(out.tau, expected)
    torch.testing.assert_close(out.gate.sum(1), torch.ones(5))
    assert module(relevance, preference, prior).tau.equal(out.tau)  # deterministic in training too


@pytest.mark.parametrize("rows", [1, 5, 130])
def test_the_prior_has_no_incentive_whatever_the_experts_have_learned(rows: int) -> None:
    torch.manual_seed(rows)
    module = RelevanceIncentive(6, 8, 4)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    relevance, preference, prior = torch.randn(rows, 6), torch.randn(rows, 8), torch.randn(8)
    preference[::2] = prior
    tau = module(relevance, preference, prior).tau
    assert tau[::2].eq(0).all() and (tau[1::2] != 0).any(1).all()


def test_what_depends_on_the_relevance_alone_cannot_be_in_the_incentive() -> None:
    torch.manual_seed(0)
    module = RelevanceIncentive(6, 8, 4)
    with torch.no_grad():
        for layer in (module.gate, module.raise_[0], module.lower[0]):
            layer.weight.copy_(torch.cat([torch.randn(layer.out_features, 8), torch.zeros(layer.out_features, 24)], dim=1))
        assert module(torch.randn(5, 6), torch.randn(5, 8), torch.randn(8)).tau.eq(0).all()


def test_load_balance_is_zero_for_equal_loads_and_ignores_padding() -> None:
    even = torch.full((2, 3), 1 / 3)
    one = torch.tensor([[1.0, 0.0, 0.0]])
    assert load_balance(even, torch.ones(2)).item() == pytest.approx(0.0)
    assert load_balance(one, torch.ones(1)).item() == pytest.approx(2.0)
    assert load_balance(torch.cat([even, one]), torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(0.0)
    assert load_balance(one, torch.zeros(1)).item() == 0.0
