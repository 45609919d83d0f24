"""Model folders of others: read, and none of their code runs, whatever they ask for and however the terminal answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_student import small
from teachers import classifier, small_pairs

from prectr_torchrec.checkpoints.safe_reader import load_state
from prectr_torchrec.data.tokenizer import load_tokenizer
from prectr_torchrec.modules import TextEncoder
from prectr_torchrec.text.build import build_relevance
from prectr_torchrec.text.teacher import load_teacher
from prectr_torchrec.text.token_vectors import read_alone
from prectr_torchrec.text.tune import tune_teacher, tuning_config

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
Path(r"{mark}").touch()
from transformers import BertConfig as TheirConfig, BertModel as TheirModel, BertTokenizer as TheirTokenizer
"""
AUTO = {
    "AutoConfig": "theirs.TheirConfig",
    **dict.fromkeys(("AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM"), "theirs.TheirModel"),
}


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier whose configuration and tokenizer ask for code of the folder; the terminal says yes to all."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    folder = classifier(tmp_path / "theirs")
    (folder / "theirs.py").write_text(CODE.format(mark=tmp_path / "ran"), encoding="utf-8")
    _edit(folder / "config.json", model_type="theirs", auto_map=AUTO)
    _edit(
        folder / "tokenizer_config.json",
        tokenizer_class="TheirTokenizer",
        auto_map={"AutoTokenizer": ["theirs.TheirTokenizer", "theirs.TheirTokenizer"]},
    )
    return folder


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def tune(folder: Path) -> Any:
    return tune_teacher(folder, small_pairs(folder.parent), folder.parent / "tuned", tuning_config(["max_length=16"]))


READERS: dict[str, Callable[[Path], Any]] = {
    "teach": lambda folder: load_teacher(folder, 4),
    "teacher-tune": tune,
    "distill.token_vectors": lambda folder: read_alone(folder, ["oak"]),
    "text.path": lambda folder: TextEncoder.from_pretrained(str(folder)),
    "the run's own": lambda folder: TextEncoder.from_settings(str(folder)),
    "the whole text side": lambda folder: build_relevance(small(text={"path": str(folder)}), folder, kept=True),
}


@pytest.mark.parametrize("reader", READERS)
def test_code_of_a_model_folder_is_refused(reader: str, theirs: Path) -> None:
    with pytest.raises(ValueError, match=r"theirs: it needs code of its own \(`auto_map`\), which is never run"):
        READERS[reader](theirs)
    assert not list(theirs.parent.rglob("ran"))


def test_of_a_tokenizer_folder_no_code_runs(theirs: Path) -> None:
    assert len(load_tokenizer(theirs)) > 0  # its class is ours
    assert not list(theirs.parent.rglob("ran"))


def test_a_damaged_model_folder_is_named(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "teacher")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"^{folder}: BertForSequenceClassification|^{folder}: AutoModel"):
        load_teacher(folder, 4)
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{folder}: "):
        load_tokenizer(folder)


class Touches:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("held", [Touches(), {"step": Touches()}, {"other": 1}, [1]])
def test_a_pickle_in_place_of_an_unfinished_job_is_refused(held: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(held, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt: .*; remove it to begin anew"):
        load_state(tmp_path / "checkpoint.pt", {"step"})
    assert not (tmp_path / "ran").exists()
