import pytest
import torch
from torch.nn import functional as F

from prectr_torchrec.modules import ClickTower, Examination, LabelProbability, LevelStatistics, RelevanceTower


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


def at_position(examination: Examination, probability: float, *position: int) -> torch.Tensor:
    """(n,) click probabilities at the positions of what has this one at the reference; no click has the rest."""
    p = torch.full((len(position),), probability)
    logged = examination(LabelProbability(p.log(), (1 - p).log()), torch.tensor(position))
    torch.testing.assert_close(logged.log_yes.exp() + logged.log_no.exp(), torch.ones(len(position)))
    return logged.log_yes.exp()


def test_a_click_needs_examination() -> None:
    examination = Examination(5)
    examination.start_from([1.0, 0.5, 0.2])
    expected = torch.tensor([0.8, 0.8, 0.4, 0.16, 0.16, 0.16])
    torch.testing.assert_close(at_position(examination, 0.8, 0, 1, 2, 3, 5, 500), expected)


def test_the_reference_is_always_examined_and_passes_no_gradient() -> None:
    examination = Examination(5)
    torch.nn.init.normal_(examination.logit)
    probability = at_position(examination, 0.3, 0, 1)
    assert probability.eq(probability[0]).all() and probability[0].item() == pytest.approx(0.3)
    probability.sum().backward()
    assert examination.logit.grad is not None and examination.logit.grad.eq(0).all()


def test_examination_of_a_certain_click_or_skip_is_finite() -> None:
    examination = Examination(3)
    for logit in (-80.0, 80.0):
        z = torch.full((4,), logit, requires_grad=True)
        logged = examination(LabelProbability(F.logsigmoid(z), F.logsigmoid(-z)), torch.arange(4))
        (logged.log_yes + logged.log_no).sum().backward()
        assert z.grad is not None and z.grad.isfinite().all() and logged.log_no.isfinite().all()


def test_examination_learns_a_curve() -> None:
    torch.manual_seed(0)
    position = torch.randint(1, 6, (4000,))
    half = torch.full((4000,), 0.5).log()
    click = torch.rand(4000) < 0.5 / position
    examination = Examination(5)
    optimizer = torch.optim.Adam(examination.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        logged = examination(LabelProbability(half, half), position)
        torch.where(click, -logged.log_yes, -logged.log_no).mean().backward()
        optimizer.step()
    learned = at_position(examination, 0.5, 1, 2, 3, 4, 5) / 0.5
    torch.testing.assert_close(learned, 1 / torch.arange(1.0, 6.0), atol=0.06, rtol=0.0)


def test_reference_outside_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reference 9 must lie in 1\.\.5"):
        Examination(5, reference=9)


@pytest.mark.parametrize("rows", [0, 1])
def test_towers_and_statistics_read_a_batch_of_one_and_of_none(rows: int) -> None:
    assert RelevanceTower(6, [8, 4], 3).eval()(torch.randn(rows, 6)).log_pi.shape == (rows, 3)
    logits = ClickTower(6, [8], 4, cross_layers=2, labels=["cart"]).eval()(torch.randn(rows, 6))
    assert {label: z.shape for label, z in logits.items()} == {"click": (rows, 4), "cart": (rows, 4)}
    assert LevelStatistics(5)(*torch.rand(3, rows, 5)).shape == (rows, 12)


def test_relevance_tower_gives_log_probabilities() -> None:
    relevance = RelevanceTower(6, [8, 4], 3)(torch.randn(5, 6))
    assert relevance.hidden.shape == (5, 4)
    torch.testing.assert_close(relevance.log_pi.exp().sum(1), torch.ones(5))


@pytest.mark.parametrize("cross_layers", [0, 2])
def test_click_tower_uses_every_parameter(cross_layers: int) -> None:
    tower = ClickTower(6, [8], 4, cross_layers=cross_layers, labels=["cart"])
    out = torch.cat(list(tower(torch.randn(5, 6)).values()), dim=1)
    out.square().sum().backward()
    assert out.shape == (5, 8)
    assert [n for n, p in tower.named_parameters() if p.grad is None] == []
