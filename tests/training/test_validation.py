from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.training.validation import ValidationMetrics


def test_figures_equal_scikit_learn_over_the_labelled_rows() -> None:
    torch.manual_seed(0)
    request = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    rows = []
    with process_group("cpu") as process:
        metrics = ValidationMetrics(rank=0, world_size=1, batch_size=12, num_batches=20, device=process.device)
        for _ in range(20):
            click, logit = torch.randint(0, 2, (12,)).float(), torch.randn(12)
            weight = torch.tensor([1.0] * 10 + [0.0] * 2)
            metrics.update(SimpleNamespace(click_weight=weight, click=click, candidate_request=request), logit + click)
            rows.append((click[:10], (logit + click)[:10].sigmoid(), request[:10]))
        figures = metrics.compute()
    click, probability = torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows])
    base = click.mean().item()
    assert figures["auc"] == pytest.approx(roc_auc_score(click, probability), abs=1e-5)
    assert figures["calibration"] == pytest.approx(probability.sum().item() / click.sum().item(), abs=1e-5)
    assert figures["ne"] == pytest.approx(log_loss(click, probability) / log_loss(click, torch.full_like(click, base)), abs=1e-4)
    per_request = [roc_auc_score(c[g == i], p[g == i]) for c, p, g in rows for i in range(3) if 0 < c[g == i].mean() < 1]
    assert 0 < figures["gauc"] < 1 and figures["gauc"] == pytest.approx(sum(per_request) / len(per_request), abs=0.05)


def test_a_batch_without_labels_counts_nothing() -> None:
    with process_group("cpu") as process:
        metrics = ValidationMetrics(rank=0, world_size=1, batch_size=2, num_batches=2, device=process.device)
        nothing = SimpleNamespace(click_weight=torch.zeros(2), click=torch.zeros(2), candidate_request=torch.zeros(2).long())
        some = SimpleNamespace(
            click_weight=torch.ones(2), click=torch.tensor([1.0, 0.0]), candidate_request=torch.zeros(2).long()
        )
        metrics.update(nothing, torch.tensor([5.0, 5.0]))
        metrics.update(some, torch.tensor([1.0, -1.0]))
        assert metrics.compute()["auc"] == 1.0
