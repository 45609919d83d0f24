"""`prectr distill` on generated pairs, in this process."""

import itertools
import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from pair_files import write_pairs, write_teacher_scores
from safetensors.torch import load_file
from small_student import run, small
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from prectr_torchrec.config.data import DataConfig, Levels
from prectr_torchrec.data.pairs.pairs import PairsFile
from prectr_torchrec.data.teacher_scores import read_teacher_scores
from prectr_torchrec.metrics import relevance_metrics
from prectr_torchrec.modules import divergence
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text.build import build_relevance
from prectr_torchrec.text.pair_data import PairData, teacher_targets
from prectr_torchrec.text.student import predict, student_config

NGRAMS = {"model_type": "ngram", "rows": 500, "embedding_dim": 16, "hidden": [16]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distill")
    write_teacher_scores(root / "scores", write_pairs(root / "pairs.parquet"), hidden=6)
    return root


@pytest.mark.parametrize(("interaction", "precision"), [("dual", "bf16"), ("late", "fp32"), ("cross", "fp32")])
def test_a_student_learns_relevance_of_queries_it_never_saw(root: Path, interaction: str, precision: str) -> None:
    found = run(small({"interaction": interaction, "precision": precision}, hidden_weight=0.2), root, interaction)
    assert found["measures"]["test"]["spearman"] > 0.5
    assert found["measures"]["test"]["queries"] == 24
    assert list(found["grades_from"]["teachers"].values()) == [{"test": {"spearman": 1.0}}]


def test_match_features_alone_and_ngrams_can_be_distilled(root: Path) -> None:
    found = run(small(model={"text": False, "match": True}), root, "match")
    assert found["measures"]["test"]["spearman"] > 0.8
    found = run(small({"encoder": NGRAMS}, teacher_epochs=20, lr=0.02, patience=20), root, "ngram")
    assert found["measures"]["test"]["spearman"] > 0.3


def test_a_student_of_match_features_alone_loads_with_its_weights(root: Path) -> None:
    run(small(model={"text": False, "match": True}), root, "match")
    config = student_config(root / "match")
    torch.testing.assert_close(
        build_relevance(config, root / "match").tower.state_dict(),
        {n.removeprefix("tower."): w for n, w in load_file(root / "match" / "relevance.safetensors").items()},
        rtol=0,
        atol=0,
    )
    config.model.text = True
    with pytest.raises(ConfigError, match=r"match is a student of match features alone; set model\.text: false"):
        build_relevance(config, root / "match")


@pytest.mark.parametrize("student", ["late", "dual", "cross", "match"])
def test_the_snippet_of_the_page_judges_as_a_batch_of_pairs_does(root: Path, student: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "encoder.md").read_text(encoding="utf-8")
    lines = page.split("with `folder` a student's path:\n")[1].splitlines()
    snippet = "\n".join(itertools.takewhile(lambda line: not line or line.startswith("    "), lines))
    pairs = pq.read_table(root / "pairs.parquet").slice(0, 20)
    query = pairs["query"][0].as_py()
    names: dict[str, Any] = {"folder": root / student, "query": query, "titles": pairs["title"].to_pylist()}
    with torch.no_grad():
        exec(textwrap.dedent(snippet), names)
    config = student_config(root / student)
    of_query = pairs.set_column(pairs.schema.get_field_index("query"), "query", pa.array([query] * len(pairs)))
    data = PairData(of_query, root / student, config.text.query_tokens, config.text.title_tokens, torch.device("cpu"))
    expected = predict(build_relevance(config, root / student), data, np.arange(len(pairs)))
    np.testing.assert_allclose(names["levels"], expected, atol=1e-6)


def test_only_a_fresh_transformer_can_start_from_token_vectors(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"distill\.token_vectors: for a fresh transformer only"):
        run(small({"encoder": NGRAMS}, token_vectors="anywhere"), root, "no_transformer")


def test_without_a_teacher_grades_alone_teach(root: Path) -> None:
    found = run(small({"interaction": "cross"}, grade_epochs=4), root, "grades", scores=False)
    assert found["measures"]["test"]["spearman"] > 0.5 and found["grades_from"]["teachers"] == {}
    stages = {
        json.loads(line).get("stage") for line in (root / "grades" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    }
    assert stages == {"grades", None}


def test_the_result_loads_with_hugging_face_and_judges_as_it_was_measured(root: Path) -> None:
    found = run(small({"interaction": "late"}, hidden_weight=0.2), root, "late")  # finished before: nothing is done again
    folder = root / "late"
    tokens = AutoTokenizer.from_pretrained(folder)("red lamp", return_tensors="pt")
    assert AutoModel.from_pretrained(folder)(**tokens).last_hidden_state.shape == (1, 3, 16)
    config = student_config(folder)
    data = PairData(PairsFile.open(root / "pairs.parquet").read(), folder, config.text.query_tokens, config.text.title_tokens)
    rows = np.flatnonzero((data.split == "test") & ~np.isnan(data.grade))
    relevance = build_relevance(config, folder)
    probabilities = predict(relevance, data, rows)
    figures = relevance_metrics(
        probabilities,
        data.grade[rows],
        data.query_id[rows],
        boundaries=config.data.levels.boundaries,
        level_grades=np.array(found["level_grades"]),
    )
    assert figures["spearman"] == pytest.approx(found["measures"]["test"]["spearman"], abs=1e-6)
    assert not (folder / "work").exists() and found["parameters"] == sum(p.numel() for p in relevance.parameters())


def test_a_student_of_ngrams_loads_with_its_weights(root: Path) -> None:
    run(small({"encoder": NGRAMS}, teacher_epochs=1, grade_epochs=0), root, "short")
    config = student_config(root / "short")
    one, other = build_relevance(config, root / "short"), build_relevance(config, root / "short")
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    again = small({"path": str(root / "short")}, teacher_epochs=1, grade_epochs=0)
    run(again, root, "longer")
    longer = build_relevance(student_config(root / "longer"), root / "longer")
    assert {n: w.shape for n, w in longer.state_dict().items()} == {n: w.shape for n, w in one.state_dict().items()}


def test_who_may_read_a_students_folder_may_read_its_weights(root: Path) -> None:
    run(small({"interaction": "late"}, hidden_weight=0.2), root, "late")
    modes = {path.stat().st_mode & 0o777 for path in (root / "late").iterdir() if path.is_file()}
    (root / "new").touch()
    assert modes == {(root / "new").stat().st_mode & 0o777}


def test_the_students_tokenizer_can_be_given(root: Path) -> None:
    run(small(teacher_epochs=1, grade_epochs=0), root, "given", tokenizer=root / "late")
    words = [(root / name / "tokenizer.json").read_text(encoding="utf-8") for name in ("given", "late")]
    assert json.loads(words[0])["model"] == json.loads(words[1])["model"]


def test_a_stage_stops_without_gain_and_the_best_epoch_is_kept(root: Path) -> None:
    found = run(small(teacher_epochs=8, grade_epochs=0, lr=1e-12, patience=2), root, "stale")
    lines = [json.loads(line) for line in (root / "stale" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = [line["validation"]["spearman"] for line in lines if "validation" in line]
    assert len(measured) < 8
    assert found["measures"]["validation"]["spearman"] == pytest.approx(max(measured), abs=1e-6)


def test_divergence_is_the_kl_of_softened_distributions_over_the_scored_rows() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(3, 4), torch.randn(3, 4).softmax(1)
    expected = 9 * F.kl_div((logits / 3).log_softmax(1)[:2], (teacher.log() / 3).softmax(1)[:2], reduction="batchmean")
    teacher[2] = torch.nan
    torch.testing.assert_close(divergence(logits.log_softmax(1), teacher, 3.0), expected)
    torch.testing.assert_close(divergence(teacher[:2].log(), teacher[:2], 2.0), torch.zeros(()))


def test_teacher_scores_find_their_pairs_in_any_order(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet", queries=5)
    scores = read_teacher_scores([write_teacher_scores(tmp_path / "scores", pairs, hidden=3)])
    probabilities, hidden = teacher_targets(pairs, scores.slice(0, 30))
    known = ~np.isnan(probabilities).any(1)
    assert known.sum() == 30 and hidden is not None
    by_key = {(r["query_id"], r["item_id"]): (r["probabilities"], r["hidden"]) for r in scores.to_pylist()}
    keys = zip(pairs["query_id"].to_pylist(), pairs["item_id"].to_pylist(), strict=True)
    for found, expected in zip((probabilities, hidden), zip(*(by_key[key] for key in keys), strict=True), strict=True):
        np.testing.assert_allclose(found[known], np.array(expected)[known])
    assert teacher_targets(pairs, scores.drop_columns("hidden"))[1] is None


def bad_pairs(tmp_path: Path, pairs: pa.Table, **settings: Any) -> str:
    tmp_path.mkdir(exist_ok=True)
    pq.write_table(pairs, tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=r".+") as caught:
        run(small(**settings), tmp_path, scores=False)
    return str(caught.value)


def test_unusable_pairs_are_refused_by_name(tmp_path: Path, root: Path) -> None:
    pairs = pq.read_table(root / "pairs.parquet")
    assert "pairs version none, this release reads" in bad_pairs(tmp_path, pairs.replace_schema_metadata())
    train = pairs.filter(pc.equal(pairs["split"], "train"))
    assert "no pair of the validation split" in bad_pairs(tmp_path / "v", train)
    ungraded = pairs.set_column(pairs.schema.get_field_index("relevance"), "relevance", pa.nulls(len(pairs), pa.float32()))
    assert "nothing to learn from" in bad_pairs(tmp_path / "u", ungraded)


def test_scores_of_other_pairs_or_levels_are_refused(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet", queries=20)
    with pytest.raises(ValueError, match=r"teach\.json is missing"):
        run(small(), tmp_path, "none")
    elsewhere = pairs.set_column(0, "query_id", pc.add(pairs["query_id"], 10_000))
    write_teacher_scores(tmp_path / "scores", elsewhere)
    with pytest.raises(ValueError, match="scored none of the train pairs"):
        run(small(), tmp_path, "elsewhere")
    two = small().model_copy(deep=True)
    two.data.levels.boundaries = [2.0]
    with pytest.raises(ConfigError, match=r"data\.levels: .*pairs\.parquet was made with boundaries \[1\.5, 2\.17, 2\.84\]"):
        run(two, tmp_path, "two")
    with pytest.raises(ConfigError, match=r"distill\.hidden_weight: 0\.5 needs hidden states of one teacher"):
        run(small(hidden_weight=0.5), tmp_path, "hidden")
    says = "graded with levels bounded by .1.5, 2.17, 2.84., data.levels.boundaries is .1.5, 2.17, 2.9."
    with pytest.raises(ValueError, match=says):
        read_teacher_scores([tmp_path / "scores"], levels=Levels(boundaries=[1.5, 2.17, 2.9]))


def test_another_students_folder_is_refused(root: Path) -> None:
    run(small(teacher_epochs=1, grade_epochs=0), root, "mine")
    with pytest.raises(ValueError, match=r"was made from other settings.*\n.*distill.lr: 0.005 there, 0.5 now"):
        run(small(teacher_epochs=1, grade_epochs=0, lr=0.5), root, "mine")


def test_what_a_student_begins_with_is_part_of_what_it_is(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "late", tmp_path / "begin")
    config = small({"path": str(tmp_path / "begin"), "interaction": "late"}, teacher_epochs=1, grade_epochs=0)
    run(config, root, "begun")
    (tmp_path / "begin" / "model.safetensors").write_bytes((root / "dual" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"was made from other settings.*\n.*files of text\.path\.model\.safetensors: "):
        run(config, root, "begun")


def test_a_student_of_other_levels_or_stems_is_refused_and_its_encoder_can_be_had(root: Path) -> None:
    student = student_config(root / "match")
    levels = student.model_copy(deep=True, update={"data": DataConfig(levels=Levels(boundaries=[1.2, 2, 2.9]))})
    stems = student.model_copy(deep=True)
    stems.text.stemmer = "german"
    for other, said in (
        (levels, "data.levels.boundaries .1.5, 2.17, 2.84., and here it is .1.2, 2.0, 2.9."),
        (stems, "text.stemmer english, and here it is german"),
    ):
        with pytest.raises(ConfigError, match=f"match was made with {said}.*or text.start: encoder"):
            build_relevance(other, root / "match")
        other.text.start = "encoder"
        build_relevance(other, root / "match")


def test_a_relevance_side_of_another_shape_is_refused_and_its_encoder_can_be_had(root: Path) -> None:
    folder = root / "late"
    other = small({"path": str(folder), "interaction": "dual"}, {"relevance_tower": [16]})
    with pytest.raises(ConfigError, match=r"was made with text.interaction late, text.late_dim 32, model.match false"):
        build_relevance(other, folder)
    alone = small({"path": str(folder), "interaction": "dual", "start": "encoder"})
    relevance = build_relevance(alone, folder)
    assert relevance.interaction is not None
    taken = relevance.interaction.encoder.state_dict()
    saved = AutoModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(saved[name.removeprefix("model.")], weight) for name, weight in taken.items())
