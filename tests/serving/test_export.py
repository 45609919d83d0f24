"""From a checkpoint to a folder, and what is scored with it against what the trainer scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from safetensors import safe_open
from sklearn.metrics import roc_auc_score
from small_run import small_config
from transformers import AutoModel, AutoTokenizer

from prectr_torchrec import Ranker
from prectr_torchrec.checkpoints.saved import SavedTensors
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.runs.layout import checkpoint_path
from prectr_torchrec.runs.workspace import file_digest
from prectr_torchrec.serving.digests import SEAL, describe, sealed
from prectr_torchrec.serving.export import export, read_about, text_encoder
from prectr_torchrec.training.trainer import Trainer

KEYS = [("request_id", "ascending"), ("item_id", "ascending")]


def differences(scored: pa.Table, predictions: pa.Table) -> tuple[float, float]:
    """The largest difference in click probability and in relevance probabilities."""
    one, other = scored.sort_by(KEYS), predictions.sort_by(KEYS)
    assert one.select(["request_id", "item_id"]).equals(other.select(["request_id", "item_id"]))
    click = np.abs(one["click_probability"].to_numpy() - other["click_probability"].to_numpy())
    relevance = [t["relevance_probabilities"].combine_chunks().flatten().to_numpy() for t in (one, other)]
    return float(click.max()), float(np.abs(relevance[0] - relevance[1]).max())


def test_the_exported_ranker_scores_what_the_trainer_scores(exported: Any, ranker: Ranker) -> None:
    assert max(differences(ranker.score(exported.samples), exported.predictions)) < 1e-5


@pytest.mark.parametrize(("precision", "close"), [("fp16", 1e-4), ("int8", 1e-3)])
def test_quantised_tables_score_nearly_the_same(exported: Any, tmp_path: Path, precision: Any, close: float) -> None:
    export(exported.run, tmp_path / precision, quantize=precision)
    scored = Ranker.load(tmp_path / precision).score(exported.samples)
    click, relevance = differences(scored, exported.predictions)
    assert click < close and relevance < 1e-5  # texts need no tables
    one, other = scored.sort_by(KEYS), exported.predictions.sort_by(KEYS)
    aucs = [roc_auc_score(other["click"].to_numpy(), t["click_probability"].to_numpy()) for t in (one, other)]
    assert abs(aucs[0] - aucs[1]) <= 0.001
    sizes = {p.name: p.stat().st_size for p in (tmp_path / precision / "tables").iterdir()}
    assert all(size < (exported.folder / "tables" / name).stat().st_size for name, size in sizes.items())


VARIANTS: dict[str, dict[str, Any]] = {
    "late": {"text": {"interaction": "late", "late_dim": 8}},
    "cross": {"text": {"interaction": "cross"}},
    "ngram": {"text": {"encoder": {"model_type": "ngram", "rows": 50, "embedding_dim": 8, "hidden": [16], "max_n": 2}}},
    "no text": {
        "model": {
            "text": False,
            "mixture": False,
            "grade_overrides": False,
            "parts": {"grade": None, "personal": None, "taste": None},
        }
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_towers_score_the_same_too(exported: Any, tmp_path: Path, variant: str) -> None:
    sections = {name: {**getattr(small_config(), name).model_dump(), **values} for name, values in VARIANTS[variant].items()}
    config = small_config(train={"stages": [{"split": "train", "epochs": 1, "lr": 0.003}]}, **sections)
    with process_group("cpu") as process:
        Trainer(config, exported.data, tmp_path / "run", process).train()
    evaluate(["--run", str(tmp_path / "run"), "--data", str(exported.data)])
    export(tmp_path / "run", tmp_path / "exported")
    scored = Ranker.load(tmp_path / "exported").score(exported.samples)
    assert max(differences(scored, pq.read_table(tmp_path / "run" / "predictions-test.parquet"))) < 1e-5


def test_towers_of_another_model_are_refused(exported: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(exported.folder, folder)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace("position_bias: true", "position_bias: false"), encoding="utf-8")
    about = {name: value for name, value in read_about(folder).items() if name != SEAL}
    about["files"] |= describe(folder, [folder / "config.yaml"])
    (folder / "export.json").write_text(json.dumps(sealed(about)), encoding="utf-8")
    with pytest.raises(ValueError, match="these weights are not the model's"):
        Ranker.load(folder)


def test_tables_that_stay_on_disk_score_the_same(exported: Any, ranker: Ranker) -> None:
    mapped = Ranker.load(exported.folder, resident=0)
    assert mapped.score(exported.samples).equals(ranker.score(exported.samples))


def test_pieces_of_every_size_make_the_whole_table(exported: Any) -> None:
    saved = SavedTensors(checkpoint_path(exported.run, "best"))
    for name, whole in saved.load("model.embeddings.").items():
        for nbytes in (1, 333, 2**24):
            pieces = list(saved.pieces(f"model.embeddings.{name}", nbytes))
            assert torch.equal(torch.cat(pieces), whole)
            assert all(piece.nbytes <= max(nbytes, whole[:1].nbytes) for piece in pieces)


def test_encoder_and_tokenizer_load_with_hugging_face_alone(exported: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported.folder / "text")
    encoder = AutoModel.from_pretrained(exported.folder / "text")
    hidden = encoder(**tokenizer(["red lamp"], return_tensors="pt")).last_hidden_state
    assert hidden.shape == (1, 3, 16)


def test_a_hub_keeps_the_folder_as_one_that_loads(exported: Any, ranker: Ranker, tmp_path: Path) -> None:
    """In the layout of the hub's cache, links to blobs, without a network."""
    repository, commit = tmp_path / "models--somebody--ranker", "0" * 40
    for path in (path for path in exported.folder.rglob("*") if path.is_file()):
        blob = repository / "blobs" / file_digest(path)
        link = repository / "snapshots" / commit / path.relative_to(exported.folder)
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    offline: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    folder = snapshot_download("somebody/ranker", **offline)
    assert Ranker.load(folder).score(exported.samples).equals(ranker.score(exported.samples))
    tokenizer = AutoTokenizer.from_pretrained("somebody/ranker", subfolder="text", **offline)
    encoder = AutoModel.from_pretrained("somebody/ranker", subfolder="text", **offline)
    kept = text_encoder(ranker.model)
    assert kept is not None and tokenizer(["red lamp"])["input_ids"] == [[2, *tokenizer.convert_tokens_to_ids(["red", "lamp"])]]
    for name, weight in kept.model.state_dict().items():
        assert torch.equal(weight, encoder.state_dict()[name])


def test_the_cards_front_matter_is_the_hubs(exported: Any) -> None:
    card = ModelCard.load(exported.folder / "README.md")
    assert card.data.library_name == "prectr-torchrec" and card.data.pipeline_tag == "text-ranking"
    assert not set(card.data.to_dict()) - {"library_name", "pipeline_tag", "tags"}


def test_tables_and_towers_are_plain_safetensors(exported: Any) -> None:
    files = list(exported.folder.rglob("*"))
    assert {f.suffix for f in files if f.is_file()} == {".safetensors", ".json", ".yaml", ".md"}
    with safe_open(exported.folder / "tables" / "item.safetensors", "pt") as file:
        assert file.get_tensor("weight").shape == (101, 8)


def test_the_card_carries_the_measured_figures(exported: Any) -> None:
    measured = json.loads((exported.run / "metrics-test.json").read_text(encoding="utf-8"))
    card = (exported.folder / "README.md").read_text(encoding="utf-8")
    assert f"| auc | {measured['clicks']['auc']:.4f} |" in card and card.startswith("---\nlibrary_name: prectr-torchrec\n")
    assert f"| new query, spearman | {measured['relevance']['new query']['spearman']:.4f} |" in card
    assert measured["logged_order"]["verdict"]["text"] in card


def test_the_card_compares_probabilities_with_clicks_at_the_logged_positions(exported: Any) -> None:
    measured = json.loads((exported.run / "metrics-test.json").read_text(encoding="utf-8"))
    card = (exported.folder / "README.md").read_text(encoding="utf-8")
    assert f"| calibration | {measured['clicks_at_position']['calibration']:.4f} |" in card
    assert card.count("| calibration |") == 1
    for line in measured["calibration_by_position"]:
        assert (
            f"| {line['position']} | {line['rows']} | {line['clicks']} | {line['predicted']:.4f} | {line['observed']:.4f} |"
            in card
        )


def test_figures_of_an_earlier_release_are_not_exported(exported: Any, tmp_path: Path) -> None:
    run = shutil.copytree(exported.run, tmp_path / "run")
    (run / "metrics-old.json").write_text(json.dumps({"split": "old", "clicks": {}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics-old\.json: measured by an earlier release; run `prectr evaluate` again"):
        export(run, tmp_path / "out")


def test_a_folder_that_is_there_is_not_written_over(exported: Any) -> None:
    with pytest.raises(ValueError, match="is there already; export to another folder"):
        export(exported.run, exported.folder)
