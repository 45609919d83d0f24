"""The tokenizer of queries and titles: WordPiece over lower-cased words, trained on the log's own texts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from prectr_torchrec.data.tokens import open_tokenizer, vocabulary_size

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
"""Their ids are 0, 1, 2, 3, 4."""
DOCUMENT_FREQUENCY = "document_frequency.json"
"""In the tokenizer's folder: `documents`, the number of distinct titles, and `frequency`, of each token id."""


def train_tokenizer(texts: Iterable[str], out: Path, vocab_size: int) -> None:
    """Trains a tokenizer and saves it in Hugging Face layout; the same texts give the same tokenizer.

    Args:
        texts: queries and titles; held in memory while training.
        out: the folder to write.
        vocab_size: tokens at most, special ones included.
    """
    texts = list(texts)
    # The trainer numbers word-inner characters in the order of a randomly seeded hash map, and breaks ties between merges by
    # these numbers. Given the characters in advance, sorted, it has no choice left.
    inner = sorted(token for token in _train(texts, 1, []) if token.startswith("##"))
    vocabulary = _train(texts, vocab_size, inner)
    tokenizer = _untrained(vocabulary)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B:1", special_tokens=[("[CLS]", vocabulary["[CLS]"])]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS).save_pretrained(str(out))


def _untrained(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _train(texts: list[str], vocab_size: int, first: list[str]) -> dict[str, int]:
    """Token -> id; the special tokens, then those of `first`, come first."""
    tokenizer = _untrained({})
    special = [*SPECIAL_TOKENS.values(), *first]
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    )
    return tokenizer.get_vocab()


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Loads a tokenizer folder.

    Raises:
        ValueError: there is no tokenizer, or one that pads with another id than 0.
    """
    if not (path / "tokenizer.json").is_file():
        raise ValueError(f"{path}: no tokenizer here (tokenizer.json is missing); `prectr prepare` writes one beside the samples")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # what is damaged may end in any of them, some without a class of their own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}: PreTrainedTokenizerFast cannot read it: {reason}") from error
    if tokenizer.pad_token_id != 0:
        raise ValueError(
            f"{path}: the padding token's id is {tokenizer.pad_token_id}; texts are padded with 0 here, so an encoder of another "
            "kind than BERT's can only be a teacher"
        )
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Ids of the tokens that are no words, padding first."""
    return tuple(sorted({0, *tokenizer.all_special_ids}))


def write_document_frequency(titles: Iterable[str], folder: Path) -> None:
    """Counts, for each token of the folder's tokenizer, the titles that contain it; `titles` are distinct."""
    tokenizer = open_tokenizer(folder)
    size = vocabulary_size(tokenizer.get_vocab())
    frequency = np.zeros(size, np.int64)
    documents = 0
    titles = iter(titles)
    while chunk := list(islice(titles, 8192)):
        encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False)]
        document = np.repeat(np.arange(len(chunk)), [len(ids) for ids in encoded])
        pairs = np.unique(document * size + np.concatenate(encoded).astype(np.int64))
        frequency += np.bincount(pairs % size, minlength=size)
        documents += len(chunk)
    (folder / DOCUMENT_FREQUENCY).write_text(
        json.dumps({"documents": documents, "frequency": frequency.tolist()}), encoding="utf-8"
    )
