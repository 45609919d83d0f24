from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sample_files import write_tokenizer
from tokenizers import Tokenizer

from prectr_torchrec.data import tokens
from prectr_torchrec.data.tokens import TextTokenizer, TokenCache

TEXTS = [
    *(
        "red oak door 12",
        "",
        "   ",
        "Red  OAK",
        "red-oak (door)/tile's 1.5\"",
        "[MASK] red[CLS]oak [ door ]",
        "_red_ ~oak~ {door}",
    ),
    *("réd oaḱ Ünknown", "红 oak木door", "tab\there\nnew\x00line\x1fred", "non\u00a0breaking\u3000space\u200bzero 🔨oak"),
    *("a" * 150 + " red " + "b" * 99 + "!" * 120, "red " * 40),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


def plain(folder: Path, texts: list[str], num_tokens: int) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(num_tokens)
    tokenizer.enable_padding(length=num_tokens)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def edit(folder: Path, **parts: object) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | parts), encoding="utf-8")


@pytest.mark.parametrize("num_tokens", [2, 5, 24])
def test_word_by_word_gives_the_tokenizers_own_ids(folder: Path, num_tokens: int) -> None:
    assert TextTokenizer(folder).encode(TEXTS, num_tokens).tolist() == plain(folder, TEXTS, num_tokens)


def test_special_tokens_after_the_text_stay_when_it_is_cut(folder: Path) -> None:
    special = {token: {"id": token, "ids": [i], "tokens": [token]} for i, token in ((2, "[CLS]"), (3, "[SEP]"))}
    single = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    edit(folder, post_processor={"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special})
    assert TextTokenizer(folder).encode(TEXTS, 5).tolist() == plain(folder, TEXTS, 5)


def test_a_tokenizer_whose_words_hang_together_is_asked_for_whole_texts(folder: Path) -> None:
    edit(folder, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False})
    assert TextTokenizer(folder).encode(TEXTS, 8).tolist() == plain(folder, TEXTS, 8)


@pytest.mark.parametrize("special", [False, True])
def test_added_words_are_found_within_longer_ones(folder: Path, special: bool) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(["ebike"])
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = ["ebikes oak", "an ebike", *TEXTS]
    assert TextTokenizer(folder).encode(texts, 8).tolist() == plain(folder, texts, 8)


def test_forgetting_words_changes_no_ids(folder: Path) -> None:
    tokenizer = TextTokenizer(folder, capacity=2)
    for text in TEXTS:
        assert tokenizer.encode([text], 8).tolist() == plain(folder, [text], 8)


def test_distinct_texts_come_once_in_order_of_first_appearance(folder: Path) -> None:
    cache = TokenCache(TextTokenizer(folder), 4)
    cache.rows(["red", "oak", "door"])  # what the cache saw before does not matter
    tokens, index = cache.distinct(cache.rows(["door", "red", "door", "tile", "red"]))
    assert tokens.tolist() == plain(folder, ["door", "red", "tile"], 4)
    assert index.tolist() == [0, 1, 0, 2, 1]


def test_the_cache_grows_with_the_texts(folder: Path) -> None:
    cache = TokenCache(TextTokenizer(folder), 6)
    texts = [f"red {i}" for i in range(3000)]
    for start in range(0, 3000, 500):
        cache.rows(texts[start : start + 500])
    tokens, _ = cache.distinct(cache.rows(texts))
    assert tokens.tolist() == plain(folder, texts, 6)


def test_trim_forgets_only_above_the_capacity(folder: Path) -> None:
    cache = TokenCache(TextTokenizer(folder), 4, capacity=2)
    cache.rows(["red", "oak"])
    assert not cache.trim()
    cache.rows(["door"])
    assert cache.trim()
    assert cache.rows(["tile"]).tolist() == [0]


def test_bags_of_tokens_leave_special_ones_out(folder: Path) -> None:
    rows = TextTokenizer(folder).vocabulary_rows(7)
    assert rows[:5].tolist() == [-1] * 5
    assert np.array_equal(rows[5:], np.arange(5, len(rows)) % 7)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no tokenizer.json here"):
        TextTokenizer(tmp_path / "nowhere")


def test_long_texts_are_forgotten_before_there_are_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_CHARACTERS_A_TEXT", 10)
    tokenizer = TextTokenizer(folder, 10)
    cache = TokenCache(tokenizer, 8, 10)
    cache.rows(["red oak " * 20])
    assert cache.trim() and not cache.trim()
    assert cache.distinct(cache.rows(["oak door"]))[0].tolist() == plain(folder, ["oak door"], 8)
    long = ["a" * 90, "b" * 90, "oak"]
    for _ in range(3):
        assert tokenizer.encode(long, 8).tolist() == plain(folder, long, 8)
