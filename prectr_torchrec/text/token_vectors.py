"""What a large encoder knows of words, for a student to start from: its token vectors are not learned from pairs alone.

Each word piece of the student is read by the large encoder as a text of its own; the mean of its last hidden states, reduced to
the student's width by principal components, becomes the piece's vector. This is the way of Model2Vec (Tulkens and van
Dongen, 2024), without its weighting of frequent tokens, which attention learns here.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from prectr_torchrec.data.tokenizer import load_tokenizer
from prectr_torchrec.modules import TextEncoder, from_folder, max_tokens
from prectr_torchrec.system.errors import ConfigError

BATCH = 256


@torch.no_grad()
def start_from_token_vectors(student: TextEncoder, tokenizer: Path, source: Path) -> None:
    """Sets the student's token vectors, scaled to the spread that it drew its own with; those of special tokens stay.

    Args:
        student: a fresh encoder.
        tokenizer: folder of its tokenizer.
        source: folder of a larger Hugging Face encoder and its tokenizer.

    Raises:
        ConfigError: the folder holds no encoder, or one that is narrower than the student.
    """
    vocabulary = load_tokenizer(tokenizer)
    table = cast(nn.Embedding, student.model.get_input_embeddings()).weight
    plain = sorted(set(vocabulary.get_vocab().values()) - set(vocabulary.all_special_ids))
    texts = [token.removeprefix("##") for token in vocabulary.convert_ids_to_tokens(plain)]
    vectors = read_alone(source, texts)
    if vectors.shape[1] < table.shape[1]:
        raise ConfigError(
            f"distill.token_vectors: {source} is {vectors.shape[1]} wide, the student {table.shape[1]}; take a larger encoder"
        )
    reduced = principal_components(vectors, table.shape[1])
    table[plain] = (reduced * (table[plain].std() / reduced.std())).to(table)


def read_alone(source: Path, texts: list[str]) -> Tensor:
    """Mean of the last hidden states of each text read alone, (N, D) float."""
    try:
        tokenizer = from_folder(AutoTokenizer, source)
        encoder = from_folder(AutoModel, source, dtype=torch.float32).eval()
    except ValueError as error:
        raise ConfigError(f"distill.token_vectors: {source} holds no Hugging Face encoder with its tokenizer: {error}") from None
    found, limit = [], max_tokens(encoder)
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(
            texts[start : start + BATCH], padding=True, truncation=limit is not None, max_length=limit, return_tensors="pt"
        )
        mask = inputs["attention_mask"].unsqueeze(-1)
        found.append((encoder(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


def principal_components(vectors: Tensor, width: int) -> Tensor:
    """The centred vectors in the `width` directions in which they differ most, (N, width)."""
    centred = vectors - vectors.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :width]  # eigenvalues ascend
    return centred @ directions
