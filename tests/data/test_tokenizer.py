from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from prectr_torchrec.data.tokenizer import DOCUMENT_FREQUENCY, load_tokenizer, train_tokenizer, write_document_frequency

TEXTS = [f"Behr Premium deck paint {size} gal. no {n}" for n in range(30) for size in ("1", "5")] + ["Käse-Reibe 3/4 in."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(TEXTS), out, 120)
    return out


def test_special_tokens_have_their_fixed_ids(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id) == (0, 1, 2)


def test_transformers_finds_it_by_itself(folder: Path) -> None:
    assert AutoTokenizer.from_pretrained(str(folder)).tokenize("premium deck") == load_tokenizer(folder).tokenize("premium deck")


def test_only_cls_is_added_and_only_in_front(folder: Path) -> None:
    ids = load_tokenizer(folder)("deck paint").input_ids
    assert ids[0] == 2
    assert not {2, 3} & set(ids[1:])


def test_case_and_accents_do_not_matter(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer("KÄSE Behr").input_ids == tokenizer("kase behr").input_ids
    assert tokenizer.unk_token_id not in tokenizer("KÄSE Behr").input_ids


def test_the_vocabulary_keeps_to_its_size(folder: Path) -> None:
    assert len(load_tokenizer(folder)) <= 120


def test_the_same_texts_give_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    for n in range(3):
        train_tokenizer(TEXTS, tmp_path / str(n), 120)
        assert (tmp_path / str(n) / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_document_frequency_counts_titles_not_occurrences(folder: Path) -> None:
    write_document_frequency(["deck deck deck", "paint", ""], folder)
    counted = json.loads((folder / DOCUMENT_FREQUENCY).read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(folder)
    assert counted["documents"] == 3
    assert len(counted["frequency"]) == len(tokenizer)
    assert counted["frequency"][tokenizer.convert_tokens_to_ids("deck")] == 1
    assert sum(counted["frequency"]) == 2
    assert counted["frequency"][2] == 0


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer here \(tokenizer.json is missing\)"):
        load_tokenizer(tmp_path)
