"""Validation figures are those of `evaluate`, over ranks, and null where the clicks cannot carry them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks
from sklearn.metrics import log_loss, roc_auc_score

from prectr_torchrec import metrics as m
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.modules import Label
from prectr_torchrec.training.validation import Validation, ValidationMetrics

REQUESTS = 240


class Labelled(dict[str, torch.Tensor]):
    """What validation reads of a batch, by name."""

    @property
    def candidate_request(self) -> torch.Tensor:
        return self["candidate_request"]

    def labels(self) -> dict[str, Label]:
        return {"click": Label(self["click"], self["click_weight"])}


def batches(rank: int = 0, world_size: int = 1, one_class: bool = False):
    """Every world_size-th of requests of 1 to 6 candidates, four to a batch; ties, padding, and requests without a label."""
    for start in range(4 * rank, REQUESTS, 4 * world_size):
        rng = np.random.default_rng(start)
        sizes = rng.integers(1, 7, 4)
        request = np.repeat(np.arange(4), sizes)
        weight = np.repeat(rng.random(4) < 0.9, sizes).astype(np.float32)
        weight[-1] = 0
        logit = rng.integers(-3, 4, len(request)).astype(np.float32)  # few values: ties
        click = (rng.random(len(request)) < 1 / (1 + np.exp(-logit))).astype(np.float32) * (not one_class)
        columns = {"click_weight": weight, "click": click, "candidate_request": request, "request_id": start + np.arange(4)}
        batch = Labelled({name: torch.from_numpy(column) for name, column in columns.items()})
        yield batch, torch.from_numpy(logit - 0.5), torch.from_numpy(logit + 0.25 * click)


def validated(rank: int = 0, world_size: int = 1, one_class: bool = False) -> Validation:
    metrics = ValidationMetrics(torch.device("cpu"))
    for batch, logged, reference in batches(rank, world_size, one_class):
        metrics.update(batch, logged=logged, reference=reference)
    return metrics.compute()


def rows(one_class: bool = False) -> tuple[np.ndarray, ...]:
    """request, click, probability at the logged position and score of all labelled rows."""
    parts = []
    for batch, logged, reference in batches(one_class=one_class):
        real = batch["click_weight"] > 0
        columns = (batch["request_id"][batch.candidate_request], batch["click"], logged.sigmoid(), reference.sigmoid())
        parts.append([column[real].numpy() for column in columns])
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def test_figures_equal_those_of_evaluate_and_of_scikit_learn() -> None:
    with process_group("cpu"):
        found = validated().figures
    request, click, probability, score = rows()
    ranking = m.ranking_metrics(score, click, request, request)
    assert found["gauc_request"] == pytest.approx(ranking["gauc_request"], abs=1e-6)
    assert found["auc"] == pytest.approx(ranking["auc"], abs=1e-6) == pytest.approx(roc_auc_score(click, score), abs=1e-6)
    measured = m.probability_metrics(probability, click)
    assert found["calibration"] == pytest.approx(measured["calibration"], abs=1e-6)
    assert found["ne"] == pytest.approx(measured["normalized_entropy"], abs=1e-6)
    assert found["ne"] == pytest.approx(
        log_loss(click, probability) / log_loss(click, np.full(len(click), click.mean())), abs=1e-5
    )


def test_gauc_weighs_requests_by_their_rows() -> None:
    """RecMetrics weighs them alike and breaks ties by the order of the rows, so that it is another figure."""
    with process_group("cpu"):
        found = validated().figures["gauc_request"]
    request, click, _, score = rows()
    groups = [request == r for r in np.unique(request) if 0 < click[request == r].mean() < 1]
    aucs, sizes = [roc_auc_score(click[g], score[g]) for g in groups], [g.sum() for g in groups]
    assert found == pytest.approx(np.average(aucs, weights=sizes), abs=1e-9)
    assert abs(found - np.mean(aucs)) > 1e-3


def test_two_ranks_measure_what_one_measures(tmp_path: Path) -> None:
    run_ranks(2, "training.test_validation:validate_on_ranks", out=tmp_path / "two")
    with process_group("cpu"):
        alone = validated()
    figures, loss = json.loads((tmp_path / "two").read_text(encoding="utf-8"))
    assert figures == pytest.approx(alone.figures, abs=1e-12)
    assert loss["rows"] == alone.loss.rows and loss["loss"] == pytest.approx(alone.loss.loss, abs=1e-9)


def validate_on_ranks(out: str) -> None:
    with process_group("cpu") as process:
        both = validated(process.rank, process.world_size)
    if process.rank == 0:
        Path(out).write_text(json.dumps([both.figures, vars(both.loss)]), encoding="utf-8")


def test_clicks_of_one_class_have_no_figures() -> None:
    with process_group("cpu"):
        found = validated(one_class=True)
    assert found.figures == dict.fromkeys(("ne", "auc", "gauc_request", "calibration"))
    assert found.loss.ne is None


def test_a_batch_without_labels_counts_nothing() -> None:
    with process_group("cpu"):
        metrics = ValidationMetrics(torch.device("cpu"))
        for labelled, logit in ((0.0, [5.0, 5.0]), (1.0, [1.0, -1.0])):
            batch = Labelled(
                click_weight=torch.full((2,), labelled),
                click=torch.tensor([1.0, 0.0]),
                candidate_request=torch.zeros(2).long(),
                request_id=torch.tensor([3]),
            )
            metrics.update(batch, logged=torch.tensor(logit), reference=torch.tensor(logit))
        assert metrics.compute().figures["auc"] == 1.0


def test_predictions_that_are_not_finite_are_refused() -> None:
    with process_group("cpu"):
        metrics = ValidationMetrics(torch.device("cpu"))
        batch, logged, reference = next(batches())
        metrics.update(batch, logged=logged * torch.inf, reference=reference)
        with pytest.raises(ValueError, match=r"predictions are not finite in [0-9]+ rows; the model has diverged"):
            metrics.compute()
