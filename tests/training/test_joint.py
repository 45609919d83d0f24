"""The distilled text side inside the ranker: started from, trained along, held still, and its n-grams never sharded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pair_files import write_pairs, write_teacher_scores
from small_run import small_config, write_small_data
from torch import Tensor

from prectr_torchrec.config import RunConfig
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.modules import NgramEncoder
from prectr_torchrec.text.build import build_relevance
from prectr_torchrec.text.distill import distill
from prectr_torchrec.training.trainer import Trainer

STAGES = {"stages": [{"split": "train", "epochs": 1, "lr": 0.003, "encoder_lr": 0.0003, "warmup_steps": 2}]}
KINDS: dict[str, dict[str, Any]] = {
    "late": {"interaction": "late"},
    "ngram": {"encoder": {"model_type": "ngram", "rows": 50, "embedding_dim": 8, "hidden": [8]}},
}


def config(**text: Any) -> RunConfig:
    return small_config(
        text={"query_tokens": 5, "title_tokens": 8, **text}, train=STAGES, distill={"teacher_epochs": 1, "grade_epochs": 0}
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples, and a student of each kind over their tokenizer."""
    root = tmp_path_factory.mktemp("joint")
    write_small_data(root / "data", config(), requests=40)
    write_teacher_scores(root / "scores", write_pairs(root / "pairs.parquet", queries=20))
    with process_group("cpu") as process:
        for name, text in KINDS.items():
            given = {"teacher_scores": [root / "scores"], "tokenizer": root / "data" / TOKENIZER}
            distill(config(**text), root / "pairs.parquet", root / name, process, **given)
    return root


def start(root: Path, run: Path, process: Process, **text: Any) -> Trainer:
    return Trainer(config(**text), root / "data", run, process)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    prectr = trainer.model.module.objective.prectr
    return {n: w.clone() for n, w in prectr.relevance.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_from_encoder_and_relevance_tower_and_tunes_both(root: Path, tmp_path: Path, kind: str) -> None:
    student = build_relevance(config(**KINDS[kind], path=str(root / kind)), root / kind).state_dict()
    with process_group("cpu") as process:
        trainer = start(root, tmp_path / "run", process, **KINDS[kind], path=str(root / kind))
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
    learned = [name for name in before if not name.startswith("match.")]
    assert all(torch.equal(before[name], student[name]) for name in learned)
    assert [name for name in learned if torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_encoder_stays_while_what_stands_on_it_learns(root: Path, tmp_path: Path, kind: str) -> None:
    with process_group("cpu") as process:
        trainer = start(root, tmp_path / "run", process, **KINDS[kind], path=str(root / kind), frozen=True)
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
    still = {name for name in before if torch.equal(before[name], after[name]) and not name.startswith("match.")}
    assert still == {name for name in before if name.startswith("interaction.encoder.")} != set()


def test_the_table_of_ngrams_is_replicated_and_has_the_encoders_rate(root: Path, tmp_path: Path) -> None:
    with process_group("cpu") as process:
        trainer = start(root, tmp_path / "run", process, **KINDS["ngram"])
        assert not any("ngram" in tables for tables in trainer.job["plan"].values())
        encoder = trainer.model.module.objective.prectr.relevance.interaction.encoder
        assert isinstance(encoder, NgramEncoder)
        group = next(g for g in trainer.optimizers.dense.param_groups if g["part"] == "encoder")
        assert any(p is encoder.bags.embedding_bags["ngram"].weight for p in group["params"])
