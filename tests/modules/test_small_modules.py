import pytest
import torch

from prectr_torchrec.modules import ClickTower, LevelStatistics, PositionBias, RelevanceTower


def test_statistics_of_nothing_are_zero() -> None:
    assert LevelStatistics(5)(*torch.zeros(3, 2, 5)).eq(0).all()


def test_statistics_golden_values() -> None:
    shown, clicked, examined = torch.tensor([[16.0, 0.0]]), torch.tensor([[4.0, 0.0]]), torch.tensor([[10.0, 0.0]])
    out = LevelStatistics(2, smoothing=5.0, base_rate=0.2)(shown, clicked, examined)
    volume = torch.tensor([17.0, 1.0, 17.0]).log() / 4
    surplus = torch.tensor([0.4, 0.0, 0.4])  # 3 * (4 - 0.2 * 10) / (10 + 5)
    torch.testing.assert_close(out[0], torch.cat([volume, surplus]))


def test_statistics_trust_many_events_more_than_few() -> None:
    few, many = LevelStatistics(1)(*torch.tensor([[1.0], [100.0]]).expand(3, 2, 1))[:, 2]
    assert 0 < few < many < 3


def test_position_zero_is_the_reference_and_costs_nothing() -> None:
    bias = PositionBias(10)
    torch.nn.init.normal_(bias.bias.weight)
    out = bias(torch.tensor([0, 1, 3, 10, 500]))[:, 0]
    assert out[0] == out[1] == 0 and out[2] != 0
    assert out[3] == out[4]


def test_position_bias_learns_an_examination_curve() -> None:
    torch.manual_seed(0)
    position = torch.randint(1, 6, (4000,))
    click = torch.rand(4000) < torch.sigmoid(-0.5 * (position - 1).float())
    bias = PositionBias(5)
    optimizer = torch.optim.Adam(bias.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(bias(position)[:, 0], click.float()).backward()
        optimizer.step()
    learned = bias(torch.arange(1, 6))[:, 0]
    assert (learned[:-1] > learned[1:]).all() and learned[4].item() == pytest.approx(-2.0, abs=0.4)


def test_reference_outside_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reference 9 must lie in 1\.\.5"):
        PositionBias(5, reference=9)


def test_relevance_tower_gives_log_probabilities() -> None:
    relevance = RelevanceTower(6, [8, 4], 3)(torch.randn(5, 6))
    assert relevance.hidden.shape == (5, 4)
    torch.testing.assert_close(relevance.log_pi.exp().sum(1), torch.ones(5))


@pytest.mark.parametrize("cross_layers", [0, 2])
def test_click_tower_uses_every_parameter(cross_layers: int) -> None:
    tower = ClickTower(6, [8], 4, cross_layers=cross_layers)
    out = tower(torch.randn(5, 6))
    out.square().sum().backward()
    assert out.shape == (5, 4)
    assert [n for n, p in tower.named_parameters() if p.grad is None] == []
