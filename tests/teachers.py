"""Small teachers, built in the test, and files of pairs for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from raw_logs import Raw, write_log
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from prectr_torchrec.config.data import DataConfig, Split
from prectr_torchrec.config.text import PairsConfig
from prectr_torchrec.data.pairs.pairs import write_pairs
from prectr_torchrec.data.tokenizer import train_tokenizer
from prectr_torchrec.text.teacher import PROMPT

DATA = DataConfig(split=Split(validation_fraction=0, test_fraction=0))
"""Of a log whose requests are all of one time."""
WORDS = "poor weak good best lamp chair table oak steel white black desk floor garden".split()
GRADES = {"poor": 1, "weak": 2, "good": 3, "best": 4}
"""What the causal teacher learns: the level that the title's last word stands for."""
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
QUERIES = ["oak lamp", "desk", "white garden chair made of steel", "", "{title}", "table", "black black black", "floor lamp"]
TITLES = [
    "Lamp poor",
    "Desk of oak and steel, white, best",
    "weak",
    "Oak good",
    "best",
    "a b c 1 2 3 good",
    "poor",
    "{query} weak",
]


def small_pairs(folder: Path, rows_per_row_group: int = 100) -> Path:
    """About 1,200 pairs, 800 of them graded after a word of their title; the raw log is in `folder / "raw"`."""
    rng = np.random.default_rng(0)
    items = [
        f"{rng.choice(WORDS[4:])} {rng.choice(list(GRADES))} {' '.join(rng.choice(WORDS[4:], rng.integers(1, 9)))}"
        for _ in range(100)
    ]
    levels = [GRADES[title.split()[1]] for title in items]
    judged = [(query, item) for query in range(40) for item in rng.choice(100, 20, replace=False).tolist()]
    shown = [(query, item) for query in range(40) for item in rng.choice(100, 2, replace=False).tolist()]
    event = {"timestamp": 1, "user_id": 1, "click": 0}
    log: Raw = {
        "items": [{"item_id": i, "title": title, "category_id": 1 + i % 30, "brand_id": 1} for i, title in enumerate(items)],
        "queries": [{"query_id": q, "query": f"{rng.choice(WORDS[4:])} {WORDS[4 + q % 10]} {q}"} for q in range(40)],
        "judgments": [{"query_id": q, "item_id": i, "relevance": (1.0, 2.0, 2.5, 3.0)[levels[i] - 1]} for q, i in judged],
        "impressions": [{"request_id": q, "query_id": q, "item_id": i, **event} for q, i in shown],
    }
    config = PairsConfig(rows_per_row_group=rows_per_row_group, validation_fraction=0.2, test_fraction=0.2)
    write_pairs(DATA, config, write_log(log, folder / "raw"), folder / "pairs.parquet")
    return folder / "pairs.parquet"


def causal_teacher(folder: Path, kind: str = "qwen2", *, chat: bool = True, trained: bool = False) -> Path:
    """A causal language model and its byte-level tokenizer, without a padding token."""
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHAT if chat else None
    torch.manual_seed(0)
    size = len(tokenizer)
    model: PreTrainedModel
    if kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=size, num_key_value_heads=1, **{**SMALL, "hidden_size": 32}))
    else:  # with a position embedding, to which the padding in front must not show
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=512))
        torch.nn.init.normal_(model.transformer.wpe.weight)
    if trained:
        _learn_last_word(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|user|>", "<|assistant|>"],
    )
    tokenizer.train_from_iterator([f" {word}" for word in WORDS] * 3 + [PROMPT.read_text(encoding="utf-8")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def _learn_last_word(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    texts = [f"<|user|>Rate {{}} : {word}<|assistant|>{grade}" for word, grade in GRADES.items()]
    for step in range(60):
        ids = torch.tensor(tokenizer([text.format(WORDS[4 + step % 10]) for text in texts])["input_ids"])
        logits = model(input_ids=ids).logits[:, -2]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, ids[:, -1]).backward()
        optimizer.step()
    model.eval()


def encoder(folder: Path) -> Path:
    """An encoder without a head, and the tokenizer of the project trained for it."""
    train_tokenizer([*WORDS, *QUERIES, *TITLES], folder, 300)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=300, initializer_range=0.2, **SMALL)).save_pretrained(folder)
    return folder


def classifier(folder: Path, labels: int = 4) -> Path:
    encoder(folder)
    torch.manual_seed(1)
    model = BertForSequenceClassification(BertConfig(vocab_size=300, num_labels=labels, **SMALL))
    torch.nn.init.normal_(model.classifier.weight)  # apart from uniform, so that rows differ
    model.save_pretrained(folder)
    return folder
