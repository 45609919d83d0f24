"""Models of few positions: long pairs are cut to what the model reads, and that is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from teachers import SMALL, WORDS, causal_teacher, encoder, small_pairs
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, RobertaConfig
from transformers import RobertaForSequenceClassification as Roberta

from prectr_torchrec.modules import max_tokens
from prectr_torchrec.text.teacher import Prompt, TeacherOptions, load_teacher
from prectr_torchrec.text.token_vectors import read_alone
from prectr_torchrec.text.tune import tune_teacher, tuning_config

LONG = " ".join(WORDS * 40)
PAIR = [["oak lamp", LONG], [LONG, "desk"]]


def short(folder: Path, kind: str, positions: int = 34) -> Path:
    """A classifier with this many positions, and the tokenizer of the project."""
    encoder(folder)
    torch.manual_seed(1)
    size = {**SMALL, "vocab_size": 300, "num_labels": 4, "max_position_embeddings": positions}
    model = BertForSequenceClassification(BertConfig(**size))
    if kind == "roberta":
        model = Roberta(RobertaConfig(**size, pad_token_id=1, type_vocab_size=1))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "limit"), [("bert", 34), ("roberta", 32)])
def test_a_classifier_cuts_pairs_to_its_positions(
    kind: str, limit: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = load_teacher(short(tmp_path, kind), 4)
    assert max_tokens(teacher.model) == limit
    assert f"the teacher reads {limit} tokens at most: pairs are cut there, not after 128" in capsys.readouterr().err
    assert [len(ids) for ids in teacher.tokenize(*PAIR)["input_ids"]] == [limit] * 2
    assert teacher.grade(*PAIR).probabilities.shape == (2, 4)


def test_a_model_of_next_to_no_positions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model reads 5 tokens, too few for a pair"):
        load_teacher(short(tmp_path, "bert", 5), 4)


def test_a_causal_model_cuts_texts_to_what_the_prompt_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = causal_teacher(tmp_path, "gpt2", chat=False)
    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(folder)
    prompt = Prompt(user="{query} and {title}:", answers=[" 1", " 2", " 3", " 4"])
    teacher = load_teacher(folder, 4, prompt=prompt)
    assert "the teacher reads 64 tokens at most: each text is cut after" in capsys.readouterr().err
    longest = max(len(ids) for ids in teacher.tokenize(*PAIR)["input_ids"])
    assert longest <= 64
    assert teacher.grade(*PAIR).probabilities.shape == (2, 4)
    with pytest.raises(ValueError, match=r"the prompt alone takes .* of the 64 tokens"):
        load_teacher(folder, 4, prompt=Prompt(user="{query} {title}" + LONG, answers=prompt.answers))


def test_tuning_cuts_pairs_to_the_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tuning_config(["batch_size=256", "negatives=0", "validations=1"])
    tune_teacher(short(tmp_path / "model", "roberta", 12), small_pairs(tmp_path), tmp_path / "tuned", settings)
    assert "the teacher reads 10 tokens at most" in capsys.readouterr().err
    assert load_teacher(tmp_path / "tuned", 4, options=TeacherOptions(max_length=8)).grade(*PAIR).probabilities.shape == (2, 4)


def test_words_of_many_tokens_are_read_as_far_as_it_goes(tmp_path: Path) -> None:
    assert read_alone(short(tmp_path, "roberta"), ["oak", LONG]).shape == (2, SMALL["hidden_size"])
