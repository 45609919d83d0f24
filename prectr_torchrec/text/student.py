"""The folder of a distilled text side: a Hugging Face encoder and tokenizer, and beside them the rest of the relevance side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from typing_extensions import TypedDict

from prectr_torchrec.config.data import Levels
from prectr_torchrec.config.run import RunConfig, validate_config
from prectr_torchrec.config.text import TextConfig
from prectr_torchrec.modules import Relevance, TextEncoder, TextRelevance
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.plain_files import read_json
from prectr_torchrec.text.pair_data import PairBatch, PairData

STUDENT = "student.json"
"""What the student is: `text`, `levels`, `match`, `relevance_tower`, as in the configuration."""
WEIGHTS = "relevance.safetensors"
"""The relevance side's weights but for those of a Hugging Face encoder, which are in `model.safetensors`."""
_HUGGING_FACE = "interaction.encoder.model."
_MATCH = "match."
"""Buffers made from the tokenizer and its document frequencies."""


class _Text(TypedDict):
    encoder: dict[str, Any]
    interaction: str
    late_dim: int
    stemmer: str | None


class _Levels(TypedDict):
    boundaries: list[float]


class _Student(TypedDict):
    text: _Text
    levels: _Levels
    encoder: bool
    match: bool
    relevance_tower: list[int]


def save_student(folder: Path, relevance: TextRelevance, settings: TextConfig, levels: Levels) -> None:
    """Writes encoder, weights and `student.json` into a folder, where the tokenizer goes too.

    Args:
        folder: of the student.
        relevance: its text side.
        settings: it was built from.
        levels: of relevance that it predicts.
    """
    weights = {name: weight.contiguous() for name, weight in relevance.state_dict().items() if not name.startswith(_MATCH)}
    encoder = relevance.interaction.encoder if relevance.interaction is not None else None
    if isinstance(encoder, TextEncoder):
        encoder.model.save_pretrained(str(folder))
        weights = {name: weight for name, weight in weights.items() if not name.startswith(_HUGGING_FACE)}
    save_file(weights, str(folder / WEIGHTS))
    text = settings.model_dump(mode="json", exclude={"path", "start", "frozen"})
    if settings.path and (began := read_student(Path(settings.path))) is not None:
        text["encoder"] = began["text"]["encoder"]
    about = {
        "text": text,
        "levels": levels.model_dump(mode="json"),
        "encoder": relevance.interaction is not None,
        "match": relevance.match is not None,
        "relevance_tower": [layer.out_features for layer in relevance.tower.layers if isinstance(layer, nn.Linear)],
    }
    (folder / STUDENT).write_text(json.dumps(about, indent=1), encoding="utf-8")


def read_student(folder: Path) -> dict[str, Any] | None:
    """`student.json`, or None where the folder has none, as one of Hugging Face's has not."""
    path = folder / STUDENT
    return dict(read_json(path, _Student)) if path.is_file() else None


def student_config(folder: Path) -> RunConfig:
    """A configuration that builds the student of a folder from this folder.

    Raises:
        ValueError: no student is there.
    """
    about = read_student(folder)
    if about is None:
        raise ValueError(f"{folder}: no distilled student here ({STUDENT} is missing); `prectr distill` makes one")
    model = {"text": about["encoder"], "match": about["match"], "relevance_tower": about["relevance_tower"]}
    text = {**about["text"], "path": str(folder)}
    tree = {"name": folder.name, "text": text, "data": {"levels": about["levels"]}, "model": model}
    return validate_config(tree, str(folder / STUDENT))


def load_relevance(folder: Path, relevance: TextRelevance, *, encoder_alone: bool = False) -> None:
    """Loads what a distilled student has beside a Hugging Face encoder; nothing where the folder is no student's.

    Args:
        folder: of the student.
        relevance: the module to load into; a Hugging Face encoder in it is left as it is.
        encoder_alone: of an encoder of n-grams the weights, else nothing.

    Raises:
        ConfigError: the weights are of another shape than the module's.
    """
    if not (folder / WEIGHTS).is_file():
        return
    try:
        stored = load_file(str(folder / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: damaged: {error}") from None
    here = {n: w for n, w in relevance.state_dict().items() if not n.startswith((_MATCH, _HUGGING_FACE))}
    if encoder_alone:
        stored, here = ({n: w for n, w in part.items() if n.startswith("interaction.encoder.")} for part in (stored, here))
    if {n: w.shape for n, w in stored.items()} != {n: w.shape for n, w in here.items()}:
        about = read_student(folder) or {}
        made = f"text.interaction {about['text']['interaction']}, text.late_dim {about['text']['late_dim']}, model.match "
        made += f"{str(about['match']).lower()}, model.relevance_tower {about['relevance_tower']}, {_levels(about)} levels"
        raise ConfigError(
            f"text.path: the relevance side of {folder} was made with {made}; set these, or text.start: encoder to take the "
            "encoder alone"
        )
    relevance.load_state_dict(stored, strict=False)


def check_meaning(about: dict[str, Any], text: TextConfig, levels: Levels, *, match: bool) -> None:
    """That a student's levels and match features are those of the configuration.

    Args:
        about: of `read_student`.
        text: of the run that takes the student's relevance tower.
        levels: of that run.
        match: whether it has match features.

    Raises:
        ConfigError: they mean something else; names the setting.
    """
    boundaries = about["levels"]["boundaries"], levels.boundaries
    settings: dict[str, tuple[Any, Any]] = {"data.levels.boundaries": boundaries}
    if match:
        settings["text.stemmer"] = (about["text"]["stemmer"], text.stemmer)
    for name, (there, here) in settings.items():
        if there != here:
            raise ConfigError(
                f"text.path: the relevance side of {text.path} was made with {name} {there}, and here it is {here}; set "
                "the same, or text.start: encoder to take the encoder alone"
            )


def _levels(about: dict[str, Any]) -> int:
    return len(about["levels"]["boundaries"]) + 1


def predict_relevance(relevance: TextRelevance, batch: PairBatch) -> Relevance:
    """What a relevance side says of pairs; each distinct text is encoded once."""
    query = relevance.encode(batch.query_tokens)[batch.query_index]
    title = relevance.encode(batch.title_tokens)[batch.title_index]
    match = relevance.match_features(batch.query_tokens[batch.query_index], batch.title_tokens[batch.title_index])
    return relevance(relevance.pair(query, title), match)


@torch.no_grad()
def predict(relevance: TextRelevance, data: PairData, rows: NDArray[np.int64], batch_size: int = 512) -> NDArray[np.float32]:
    """Level probabilities (len(rows), K) of pairs, without dropout."""
    was_training = relevance.training
    relevance.eval()
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    found = [predict_relevance(relevance, data.batch(chunk)).log_pi.exp().cpu().numpy() for chunk in chunks]
    relevance.train(was_training)
    return np.concatenate([np.zeros((0, relevance.tower.head.out_features), np.float32), *found])
