"""Teachers against one pair at a time, and the messages for models and prompts that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teachers import GRADES, QUERIES, SMALL, TITLES, WORDS, byte_level_tokenizer, causal_teacher, classifier, encoder
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text.teacher import CausalTeacher, Prompt, TeacherOptions, load_prompt, load_teacher

PROMPT = Prompt(user="Rate {query} : {title}", answers=["1", "2", "3", "4"])


def alone(path: Path, prompt: Prompt, query: str, title: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Restricted probabilities and last hidden state of one prompt, without batch, padding or shortcuts."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
    text = prompt.user.split("{query}")[0] + query + prompt.user.split("{query}")[1].replace("{title}", title)
    if tokenizer.chat_template:
        text = f"<|user|>{text}<|assistant|>"
    output = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True)
    answers = [tokenizer(answer)["input_ids"][0] for answer in prompt.answers]
    return output.logits[0, -1, answers].softmax(-1), output.hidden_states[-1][0, -1]


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
@pytest.mark.parametrize("chat", [True, False])
@torch.no_grad()
def test_a_causal_model_in_batches_equals_one_pair_at_a_time(tmp_path: Path, kind: str, chat: bool) -> None:
    path = causal_teacher(tmp_path, kind, chat=chat)
    graded = load_teacher(path, 4, prompt=PROMPT, options=TeacherOptions(max_tokens=100)).grade(QUERIES, TITLES, hidden=True)
    expected = [alone(path, PROMPT, query, title) for query, title in zip(QUERIES, TITLES, strict=True)]
    np.testing.assert_allclose(graded.probabilities, torch.stack([p for p, _ in expected]), atol=1e-6)
    assert graded.probabilities.dtype == np.float32
    assert graded.hidden is not None and graded.hidden.dtype == np.float16
    np.testing.assert_allclose(graded.hidden, torch.stack([h for _, h in expected]), atol=2e-3)
    assert np.ptp(graded.probabilities, axis=0).min() > 1e-4, "the pairs must differ, or nothing is compared"


def test_a_trained_causal_model_says_what_it_learned(tmp_path: Path) -> None:
    teacher = load_teacher(causal_teacher(tmp_path, trained=True), 4, prompt=PROMPT)
    queries = [f"{word} {word}" * (n % 3) + word for n, word in enumerate(WORDS[4:] * 4)]
    titles = [word for word in GRADES for _ in range(10)]
    probabilities = teacher.grade(queries, titles).probabilities
    right = probabilities.argmax(1) + 1 == np.repeat(list(GRADES.values()), 10)
    assert right.mean() > 0.9


def test_temperature_flattens(tmp_path: Path) -> None:
    path = classifier(tmp_path)
    one, two = (load_teacher(path, 4, options=TeacherOptions(temperature=t)).grade(QUERIES, TITLES) for t in (1, 2))
    squared = two.probabilities**2
    np.testing.assert_allclose(squared / squared.sum(1, keepdims=True), one.probabilities, atol=1e-6)


@torch.no_grad()
def test_a_classifier_in_batches_equals_one_pair_at_a_time(tmp_path: Path) -> None:
    path = classifier(tmp_path)
    graded = load_teacher(path, 4, options=TeacherOptions(max_tokens=30)).grade(QUERIES, TITLES, hidden=True)
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForSequenceClassification.from_pretrained(path).eval()
    assert graded.hidden is not None
    for n, (query, title) in enumerate(zip(QUERIES, TITLES, strict=True)):
        output = model(**tokenizer(query, title, return_tensors="pt"), output_hidden_states=True)
        np.testing.assert_allclose(graded.probabilities[n], output.logits[0].softmax(-1), atol=1e-6)
        np.testing.assert_allclose(graded.hidden[n], output.hidden_states[-1][0].mean(0), atol=2e-3)


@pytest.mark.parametrize("padding", [{}, {"model": 7}, {"tokenizer": "<|user|>"}, {"model": 7, "tokenizer": "<|user|>"}])
@torch.no_grad()
def test_a_decoder_that_classifies_is_read_at_the_pairs_end(tmp_path: Path, padding: dict[str, Any]) -> None:
    """Whichever of model and tokenizer name a padding token, if any."""
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = padding.get("tokenizer")
    torch.manual_seed(0)
    settings = {**SMALL, "num_key_value_heads": 1, "num_labels": 4, "pad_token_id": padding.get("model")}
    Qwen2ForSequenceClassification(Qwen2Config(vocab_size=len(tokenizer), **settings)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    graded = load_teacher(tmp_path, 4, options=TeacherOptions(max_tokens=60)).grade(QUERIES, TITLES)
    model, tokenizer = Qwen2ForSequenceClassification.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    for n, (query, title) in enumerate(zip(QUERIES, TITLES, strict=True)):
        ids = tokenizer(query, title, return_tensors="pt")["input_ids"]
        expected = model.score(model.model(ids).last_hidden_state[:, -1])
        np.testing.assert_allclose(graded.probabilities[n], expected[0].softmax(-1), atol=1e-6)


def test_long_texts_are_cut_and_the_question_stays(tmp_path: Path) -> None:
    teacher = load_teacher(causal_teacher(tmp_path), 4, prompt=PROMPT, options=TeacherOptions(max_length=8))
    assert isinstance(teacher, CausalTeacher)
    (ids,) = teacher.tokenize([" lamp" * 50], [" desk" * 3 + " é" * 50])["input_ids"]
    text = teacher.tokenizer.decode(ids)
    assert text.startswith("<|user|>Rate " + " lamp" * 8 + " : ")
    assert text.endswith("<|assistant|>")
    assert " desk desk desk" in text
    (whole,) = teacher.tokenize(["lamp"], ["desk"])["input_ids"]
    assert teacher.tokenizer.decode(whole) == "<|user|>Rate lamp : desk<|assistant|>"


def test_a_cut_pair_keeps_to_the_length(tmp_path: Path) -> None:
    teacher = load_teacher(classifier(tmp_path), 4, options=TeacherOptions(max_length=8))
    (ids,) = teacher.tokenize(["desk lamp"], ["oak " * 50])["input_ids"]
    assert len(ids) == 8


def test_places_in_the_texts_stay_as_they_are(tmp_path: Path) -> None:
    teacher = load_teacher(causal_teacher(tmp_path), 4, prompt=PROMPT)
    (ids,) = teacher.tokenize(["{title}"], ["{query}"])["input_ids"]
    assert teacher.tokenizer.decode(ids) == "<|user|>Rate {title} : {query}<|assistant|>"


def test_the_shipped_prompt_asks_for_four_levels(tmp_path: Path) -> None:
    teacher = load_teacher(causal_teacher(tmp_path), 4)
    probabilities = teacher.grade(QUERIES, TITLES).probabilities
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["1", "2", "3", "zebra"], "answer 'zebra' is not one token behind the prompt"),
        (["1", "2", "3", "3"], "are not all different tokens"),
        (["1", "2"], "the prompt has 2 answers, the pairs 4 levels"),
    ],
)
def test_answers_that_cannot_be_asked_for_are_named(tmp_path: Path, answers: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_teacher(causal_teacher(tmp_path), 4, prompt=PROMPT.model_copy(update={"answers": answers}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user: '{query} {title}'", "answers: Field required"),
        ("user: '{query}'\nanswers: [a, b]", "user: {title} is missing"),
        (
            "user: '{query} {title}'\nanswers: [a, b]\nsystem: be kind",
            "system: unknown key .valid: answers, template_options, user",
        ),
        ("user: [", "not valid YAML"),
        ("user: '{query} {title}'\nanswers: [1, 2]", "answers.0: Input should be a valid string"),
    ],
)
def test_prompt_files_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "prompt.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{file}: {message}"):
        load_prompt(file)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda path: path, "no model here .config.json is missing"),
        (encoder, r"\['BertModel'\] is neither a causal language model nor a sequence classifier"),
        (lambda path: classifier(path, labels=2), "the classifier has 2 labels, the pairs 4 levels"),
    ],
)
def test_models_that_cannot_teach_are_named(tmp_path: Path, build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_teacher(build(tmp_path), 4)
