"""A configuration becomes the text side of a model: encoder, interaction, match features and relevance tower."""

from __future__ import annotations

import inspect
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import snowballstemmer
import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedTokenizerFast
from typing_extensions import TypedDict

from prectr_torchrec.config.columns import TextColumn
from prectr_torchrec.config.data import DataConfig, Levels
from prectr_torchrec.config.kinds import RelevanceSection
from prectr_torchrec.config.parts import Parts
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.data.columns import declared_of
from prectr_torchrec.data.tokenizer import DOCUMENT_FREQUENCY, load_tokenizer, special_ids
from prectr_torchrec.data.tokens import vocabulary_size
from prectr_torchrec.modules import (
    CrossInteraction,
    DualInteraction,
    Interaction,
    LateInteraction,
    NgramEncoder,
    Precision,
    TextEncoder,
    TextMatch,
    TextRelevance,
    max_tokens,
)
from prectr_torchrec.system.errors import ConfigError, nearest
from prectr_torchrec.system.plain_files import read_json
from prectr_torchrec.text.student import STUDENT, check_meaning, load_relevance, read_student

NGRAM = "ngram"
"""The `model_type` of `NgramEncoder`."""


def keep_settings(text: TextConfig, tokenizer: Path) -> None:
    """Copies into the tokenizer's folder of a run what it needs of `text.path` besides the weights, so that it can do without."""
    if text.path:
        for name in ("config.json", STUDENT):
            if (source := Path(text.path) / name).is_file():
                shutil.copyfile(source, tokenizer / name)


def build_relevance(config: RunConfig, tokenizer: Path, *, kept: bool = False) -> TextRelevance:
    """The text side: interaction over an encoder, match features and relevance tower; started from `text.path` where it is set.

    Args:
        config: reads `text`, `data.levels`, and of `model` what concerns the relevance tower.
        tokenizer: tokenizer folder with document frequencies.
        kept: the weights come from a checkpoint: `text.path` is not read, but what `keep_settings` has of it.

    Raises:
        ConfigError: a kind of ranker without one, settings that do not fit together, the tokenizer, or what is in `text.path`.
    """
    model, text = config.model, config.text
    if not isinstance(model, RelevanceSection):
        raise ConfigError(f"model.kind: a ranker of kind {model.kind!r} has no relevance tower")
    interaction = None
    if model.text:
        further = _encoded_texts(model.parts, config.data)
        interaction = build_interaction(text, load_tokenizer(tokenizer), tokenizer, kept=kept, further=further)
    match = build_match(tokenizer, text.stemmer) if model.match else None
    if interaction is None and match is None:
        raise ConfigError("model.text and model.match are both false: the relevance tower needs one of them")
    relevance = TextRelevance(interaction, match, model.relevance_tower, config.data.levels.count, dropout=model.dropout)
    if text.path and not kept:
        _start(text, relevance, config.data.levels)
    if text.frozen and not (text.path or config.train.init_from):
        raise ConfigError("text.frozen: the encoder begins from nothing and would stay there; give text.path")
    if text.frozen and interaction is not None:
        interaction.encoder.requires_grad_(False)
    return relevance


def _start(text: TextConfig, relevance: TextRelevance, levels: Levels) -> None:
    """Loads what `text.path` has beside a Hugging Face encoder."""
    path, whole = Path(str(text.path)), text.start == "relevance"
    student = read_student(path)
    if student is not None and (relevance.interaction is not None or _of_match_alone(student)):
        load_relevance(path, relevance, encoder_alone=not whole)
        if whole:
            check_meaning(student, text, levels, match=relevance.match is not None)


def _encoded_texts(parts: Parts, data: DataConfig) -> dict[str, int]:
    """Tokens of the further texts that are encoded, by the key that says so."""
    if getattr(parts, "further_encodings", None) is None:
        return {}
    texts = declared_of(data, TextColumn)
    return {f"data.columns.items.{column.key}.text.tokens": settings.tokens for column, settings in texts}


def build_interaction(
    text: TextConfig,
    vocabulary: PreTrainedTokenizerFast,
    source: Path,
    *,
    kept: bool = False,
    further: Mapping[str, int] | None = None,
) -> Interaction:
    """The encoder and how it reads a pair.

    Args:
        text: of the configuration.
        vocabulary: the tokenizer.
        source: its folder.
        kept: as of `build_relevance`.
        further: tokens of other texts that are read as titles are, by the key that says so.
    """
    encoder = _build_encoder(text, vocabulary, source, kept)
    if isinstance(encoder, NgramEncoder):
        if text.interaction != "dual":
            raise ConfigError(f"text.interaction: an encoder of n-grams reads texts apart: dual, not {text.interaction}")
        return DualInteraction(encoder)
    limit, joined = max_tokens(encoder.model), text.interaction == "cross"
    for key, tokens in {"text.title_tokens": text.title_tokens, **(further or {})}.items():
        # two [CLS] less, [CLS] and two [SEP] more
        longest = text.query_tokens + tokens + 1 if joined else max(text.query_tokens, tokens)
        if limit is not None and longest > limit:
            raise ConfigError(
                f"{key} and text.query_tokens may be at most {limit}{' together' * joined}, the encoder's positions; "
                f"got {longest}"
            )
    if text.interaction == "cross":
        if vocabulary.cls_token_id is None or vocabulary.sep_token_id is None:
            raise ConfigError(f"text.interaction: cross needs a tokenizer with [CLS] and [SEP]; {source} lacks one of them")
        return CrossInteraction(encoder, cls_token=vocabulary.cls_token_id, sep_token=vocabulary.sep_token_id)
    return LateInteraction(encoder, dim=text.late_dim) if text.interaction == "late" else DualInteraction(encoder)


class _Counts(TypedDict):
    documents: int
    frequency: list[int]


def build_match(tokenizer: Path, stemmer: str | None) -> TextMatch:
    """Match features over a tokenizer's vocabulary, weighted by the document frequencies beside it.

    Args:
        tokenizer: tokenizer folder.
        stemmer: a Snowball language, so that "screws" meets "screw"; None: tokens meet only themselves.

    Raises:
        ConfigError: Snowball has no such language.
        ValueError: the frequencies are damaged, or of another tokenizer.
    """
    if stemmer and stemmer not in snowballstemmer.algorithms():
        raise ConfigError(f"text.stemmer: no Snowball language {stemmer!r}{nearest(stemmer, snowballstemmer.algorithms())}")
    counts = read_json(tokenizer / DOCUMENT_FREQUENCY, _Counts)
    vocabulary = load_tokenizer(tokenizer)
    if max(special_ids(vocabulary)) >= len(counts["frequency"]):
        raise ValueError(f"{tokenizer / DOCUMENT_FREQUENCY}: its {len(counts['frequency'])} counts are of another tokenizer")
    names = {i: token for token, i in vocabulary.get_vocab().items()}
    tokens = [names.get(i, "") for i in range(len(counts["frequency"]))]
    stem_word = snowballstemmer.stemmer(stemmer).stemWord if stemmer else str
    first: dict[str, int] = {}  # stem -> the first token that has it; the inner pieces of words have no stem
    stem = [first.setdefault(token if token.startswith("##") else stem_word(token), i) for i, token in enumerate(tokens)]
    frequency = torch.zeros(len(tokens)).index_add(0, torch.tensor(stem), torch.tensor(counts["frequency"], dtype=torch.float32))
    idf = (math.log1p(counts["documents"]) - frequency.clamp(max=counts["documents"]).log1p()).clamp(min=0.01)
    is_number = torch.tensor([token.removeprefix("##").isdigit() for token in tokens])
    return TextMatch(idf[stem], is_number, torch.tensor(stem), special_tokens=special_ids(vocabulary))


def _build_encoder(text: TextConfig, vocabulary: PreTrainedTokenizerFast, source: Path, kept: bool) -> TextEncoder | NgramEncoder:
    if text.path is None:
        return _fresh_encoder(text.encoder, vocabulary, text.precision)
    path = str(source) if kept else text.path
    if not kept and load_tokenizer(Path(path)).get_vocab() != vocabulary.get_vocab():
        raise ConfigError(
            f"text.path: {path} has another vocabulary than {source}: its encoder would read noise; prepare the samples with "
            "this text.path"
        )
    student = read_student(Path(path))
    if _of_match_alone(student):
        raise ConfigError(f"text.path: {path} is a student of match features alone; set model.text: false, or give another")
    if student is not None and student["text"]["encoder"]["model_type"] == NGRAM:
        return _fresh_encoder(student["text"]["encoder"], vocabulary, text.precision)  # its weights lie beside the tower's
    build = TextEncoder.from_settings if kept else TextEncoder.from_pretrained
    return build(path, precision=text.precision)


def _of_match_alone(student: dict[str, Any] | None) -> bool:
    """Whether what `read_student` gave is of a student of match features alone."""
    return student is not None and not student["encoder"]


def _fresh_encoder(
    settings: dict[str, Any], vocabulary: PreTrainedTokenizerFast, precision: Precision
) -> TextEncoder | NgramEncoder:
    if settings.get("model_type") == NGRAM:
        known = set(inspect.signature(NgramEncoder).parameters) - {"special_tokens"}
        _check_keys(settings, {"model_type", *known})
        own: dict[str, Any] = {key: tuple(v) if key == "hidden" else v for key, v in settings.items() if key != "model_type"}
        return NgramEncoder(**own, special_tokens=special_ids(vocabulary))
    settings = {"vocab_size": vocabulary_size(vocabulary.get_vocab()), "pad_token_id": vocabulary.pad_token_id, **settings}
    if settings.get("model_type") not in CONFIG_MAPPING:
        raise ConfigError(
            f"text.encoder.model_type: {settings.get('model_type')!r} is no Hugging Face architecture, nor {NGRAM}; try bert"
        )
    _check_keys(settings, AutoConfig.for_model(settings["model_type"]).to_dict())
    return TextEncoder.from_config(**settings, precision=precision)


def _check_keys(settings: dict[str, Any], known: Any) -> None:
    for key in settings:
        if key not in known:
            raise ConfigError(f"text.encoder.{key}: unknown to {settings['model_type']}{nearest(key, known)}")
