"""What a student learns from, in which measure, and which of its epochs is kept."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from pair_files import write_pairs, write_teacher_scores
from safetensors.torch import load_file
from sample_files import write_counted_tokenizer
from small_student import run, small
from text_modules import encoder, match
from torch.nn import functional as F

from prectr_torchrec.config.text import DistillConfig
from prectr_torchrec.modules import DualInteraction, TextRelevance, divergence
from prectr_torchrec.text.build import build_relevance
from prectr_torchrec.text.distiller import Distiller, StudentTask, Targets
from prectr_torchrec.text.pair_data import PairBatch, PairData
from prectr_torchrec.text.student import predict, predict_relevance

PAIRS = PairBatch(
    torch.tensor([[2, 7, 8], [2, 9, 0]]),
    torch.tensor([[2, 7, 11], [2, 30, 9], [2, 41, 0]]),
    torch.tensor([0, 1, 1]),
    torch.tensor([0, 1, 2]),
)


@pytest.mark.parametrize("stage", ["teacher", "grade"])
def test_what_is_said_of_other_splits_changes_no_weight(tmp_path: Path, stage: str) -> None:
    config = small(model={"text": False, "match": True}, **{"teacher_epochs": 0, "grade_epochs": 0, f"{stage}_epochs": 1})
    for name in ("as_it_is", "other"):
        pairs = write_pairs(tmp_path / name / "pairs.parquet", queries=40)
        if name == "other":
            away = pc.not_equal(pairs["split"], "train")
            for column in ("relevance", "true"):
                turned = pc.if_else(away, pc.subtract(4.0, pairs[column]), pairs[column]).cast(pa.float32())
                pairs = pairs.set_column(pairs.schema.get_field_index(column), column, turned)
            pq.write_table(pairs.drop_columns("true"), tmp_path / name / "pairs.parquet")
        write_teacher_scores(tmp_path / name / "scores", pairs)
        run(config, tmp_path / name)
    one, other = ((tmp_path / name / "student" / "relevance.safetensors").read_bytes() for name in ("as_it_is", "other"))
    assert one == other


@pytest.mark.parametrize(("best", "grade_lr"), [(1, 1e-12), (3, 0.01)])
def test_the_best_epoch_is_kept_and_grades_begin_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int, grade_lr: float
) -> None:
    write_teacher_scores(tmp_path / "scores", write_pairs(tmp_path / "pairs.parquet", queries=40))
    seen: list[dict[str, torch.Tensor]] = []

    def measure(self: Distiller, *given: object) -> dict[str, float]:
        seen.append({name: weight.clone() for name, weight in self.relevance.state_dict().items()})
        return {"spearman": 0.9 if len(seen) == best + 1 else 0.1}

    monkeypatch.setattr(Distiller, "measure", measure)
    run(small(model={"text": False, "match": True}, teacher_epochs=3, grade_epochs=2, grade_lr=grade_lr, patience=9), tmp_path)
    for name, weight in load_file(tmp_path / "student" / "relevance.safetensors").items():
        assert torch.equal(weight, seen[best][name]) and not torch.equal(weight, seen[2 if best == 1 else 4][name])
        if best == 1:  # the grades' rate is nothing: their first epoch ends as it began
            torch.testing.assert_close(seen[3][name], weight)


def test_dropout_goes_on_after_a_measurement(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet", queries=3).drop_columns("true")
    folder = write_counted_tokenizer(tmp_path / "tokenizer")
    data, relevance = PairData(pairs, folder, 5, 8), build_relevance(small(model={"dropout": 0.5}), folder).train()
    one, two = (predict(relevance, data, np.arange(9)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert relevance.training and relevance.tower.training


def test_the_loss_of_a_stage_is_the_weighted_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    relevance = TextRelevance(DualInteraction(encoder()), match(), [8], 4).eval()
    config = DistillConfig(temperature=3.0, hidden_weight=0.3, teacher_weight=0.4)
    teacher, grade = torch.rand(3, 4).softmax(1), torch.rand(3, 4).softmax(1)
    out = predict_relevance(relevance, PAIRS)
    of_teacher = divergence(out.log_pi, teacher, 3.0)
    task = StudentTask(relevance, config, teaching=True, hidden_dim=5)
    assert task.project is not None
    projected = task.project(out.hidden).detach()
    targets = Targets(grade, teacher, torch.cat([projected[:2] * 4, -projected[2:]]))  # alike, alike, opposite
    torch.testing.assert_close(task(PAIRS, targets)["loss"], of_teacher + 0.3 * torch.tensor(2 / 3))
    task = StudentTask(relevance, config, teaching=False)
    expected = F.cross_entropy(out.log_pi, grade) + 0.4 * of_teacher
    torch.testing.assert_close(task(PAIRS, targets)["loss"], expected)
