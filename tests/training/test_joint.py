"""The distilled text side inside the ranker: started from, trained along, held still, and its n-grams never sharded."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pair_files import write_pairs, write_teacher_scores
from small_run import small_config, write_small_data
from torch import Tensor

from prectr_torchrec import Ranker
from prectr_torchrec.config.data import Levels
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.data.teacher_scores import probabilities, read_teacher_scores
from prectr_torchrec.data.tokenizer import load_tokenizer
from prectr_torchrec.distributed.process import Process, process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.modules import NgramEncoder, divergence
from prectr_torchrec.serving.export import export
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text.build import build_relevance
from prectr_torchrec.text.distill import distill
from prectr_torchrec.text.student import predict_relevance
from prectr_torchrec.training.rehearsal import Rehearsal
from prectr_torchrec.training.trainer import Trainer

STAGES = {"stages": [{"split": "train", "epochs": 1, "lr": 0.003, "encoder_lr": 0.0003, "warmup_steps": 2}]}
KINDS: dict[str, dict[str, Any]] = {
    "late": {"interaction": "late"},
    "ngram": {"encoder": {"model_type": "ngram", "rows": 50, "embedding_dim": 8, "hidden": [8]}},
}


def config(rehearsal: dict[str, Any] | None = None, **text: Any) -> RunConfig:
    return small_config(
        text={"query_tokens": 5, "title_tokens": 8, **text},
        train=STAGES,
        distill={"teacher_epochs": 1, "grade_epochs": 0},
        losses={"rehearsal": rehearsal or {}},
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
    prectr = trainer.model.module.model
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
        encoder = trainer.model.module.model.relevance.interaction.encoder
        assert isinstance(encoder, NgramEncoder)
        group = next(g for g in trainer.optimizers.dense.param_groups if g["part"] == "encoder")
        assert any(p is encoder.bags.embedding_bags["ngram"].weight for p in group["params"])


def rehearsal(root: Path, **settings: Any) -> dict[str, Any]:
    return {"pairs": str(root / "pairs.parquet"), "scores": [str(root / "scores")], **settings}


def rehearse(run: RunConfig, root: Path) -> Rehearsal:
    return Rehearsal(run.losses.rehearsal, run.text, run.data.levels, root / "data" / TOKENIZER, torch.device("cpu"))


def test_rehearsal_draws_the_train_queries_scored_pairs_with_what_the_teacher_says_of_them(root: Path, tmp_path: Path) -> None:
    table = write_pairs(tmp_path / "pairs.parquet", queries=20)
    train = [row for row in table.to_pylist() if row["split"] == "train"]
    unscored = {row["item_id"] for row in train[:5]}
    keep = [row["item_id"] not in unscored for row in table.to_pylist()]
    scores = read_teacher_scores([write_teacher_scores(tmp_path / "scores", table.filter(keep))])
    said = dict(zip(scores["item_id"].to_pylist(), probabilities(scores), strict=True))
    settings = rehearsal(tmp_path, batch_size=64)
    source = rehearse(config(settings), root)
    decode = load_tokenizer(root / "data" / TOKENIZER).batch_decode
    torch.manual_seed(0)
    found = set()
    for _ in range(20):
        pairs, teacher = source.draw()
        queries = decode(pairs.query_tokens[pairs.query_index], skip_special_tokens=True)
        titles = decode(pairs.title_tokens[pairs.title_index], skip_special_tokens=True)
        found |= {(q, t, *row) for q, t, row in zip(queries, titles, teacher.tolist(), strict=True)}
    taught = [row for row in train if row["item_id"] not in unscored]
    assert found == {(row["query"], row["title"], *said[row["item_id"]].tolist()) for row in taught}


def test_rehearsal_holds_the_tower_to_the_teachers_word(root: Path, tmp_path: Path) -> None:
    away = {}
    for name, given in (("without", None), ("with", rehearsal(root, weight=3.0))):
        with process_group("cpu") as process:
            made = config(given, **KINDS["late"], path=str(root / "late"))
            made.train.stages[0].epochs = 10
            trainer = Trainer(made, root / "data", tmp_path / name, process)
            trainer.train()
            relevance = trainer.model.module.model.relevance.eval()
        torch.manual_seed(0)
        pairs, teacher = rehearse(config(rehearsal(root)), root).draw()
        away[name] = divergence(predict_relevance(relevance, pairs).log_pi, teacher, 1.0).item()
    assert away["with"] < 0.7 * away["without"]
    logged = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line["rehearsal"] > 0 for line in logged if "loss" in line)


def test_rehearsal_that_cannot_be_used_is_refused_before_a_run_is_begun(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"losses.rehearsal: .*pairs and scores belong together"):
        config({"pairs": "pairs.parquet"})
    other = write_pairs(tmp_path / "other.parquet", queries=20).set_column(0, "query_id", pa.array(range(1000, 1160)))
    scores = str(write_teacher_scores(tmp_path / "scores", other))
    two = pq.read_table(root / "pairs.parquet")
    metadata = {**two.schema.metadata, b"levels": Levels(boundaries=[2.0]).model_dump_json().encode()}
    pq.write_table(two.replace_schema_metadata(metadata), tmp_path / "two.parquet")
    with process_group("cpu") as process:
        for made, says in (
            (config(rehearsal(root, pairs=str(tmp_path / "none.parquet"))), "none.parquet: there is no such file"),
            (config(rehearsal(root, scores=[scores])), "losses.rehearsal.scores: .* have none of the train pairs of"),
            (config(rehearsal(root, pairs=str(tmp_path / "two.parquet"))), "two.parquet was made with boundaries .2.0."),
        ):
            with pytest.raises(ValueError, match=says):
                Trainer(made, root / "data", tmp_path / "run", process)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_pairs_it_was_begun_with_alone(root: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet", queries=20)
    write_teacher_scores(tmp_path / "scores", pairs)
    with process_group("cpu") as process:
        Trainer(config(rehearsal(tmp_path)), root / "data", tmp_path / "run", process).train()
        pq.write_table(pairs.slice(1), tmp_path / "pairs.parquet")
        with pytest.raises(ConfigError, match=r"cannot be resumed by this job \(rehearsal.pairs: '\w{64}' then, '\w{64}' now\)"):
            Trainer(config(rehearsal(tmp_path)), root / "data", tmp_path / "run", process).train()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_does_without_the_student_that_it_began_with(root: Path, tmp_path: Path, kind: str) -> None:
    student = tmp_path / "student"
    shutil.copytree(root / kind, student)
    with process_group("cpu") as process:
        trained = start(root, tmp_path / "run", process, **KINDS[kind], path=str(student), frozen=kind == "ngram")
        trained.train()
        shutil.rmtree(student)
        resumed = start(root, tmp_path / "run", process, **KINDS[kind], path=str(student), frozen=kind == "ngram")
        resumed.train()
    for name, weight in weights(trained).items():
        torch.testing.assert_close(weights(resumed)[name], weight, rtol=0, atol=0)
    evaluate(["--run", str(tmp_path / "run"), "--data", str(root / "data")])
    export(tmp_path / "run", tmp_path / "exported")
    samples = pa.concat_tables([pq.read_table(path) for path in sorted((root / "data" / "test").glob("*.parquet"))])
    scored = Ranker.load(tmp_path / "exported").score(samples)
    predicted = pq.read_table(tmp_path / "run" / "predictions-test.parquet")
    assert not (tmp_path / "exported" / "text" / "student.json").exists()
    ours, theirs = (
        table.sort_by([("request_id", "ascending"), ("item_id", "ascending")])["click_probability"].to_numpy()
        for table in (scored, predicted)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
