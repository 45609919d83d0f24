"""A small Hugging Face encoder as one more tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel


class TextEncoder(nn.Module):
    """Encodes each text once: the mean of the last hidden states over its tokens.

    Args:
        model: a Hugging Face encoder whose output has `last_hidden_state`.
        length_groups: batches by length that a large batch is cut into.

    Example::

        encoder = TextEncoder.from_config(vocab_size=8000, model_type="bert", hidden_size=128, num_hidden_layers=3)
        vectors = encoder(tokens)  # (N, 128)
    """

    def __init__(self, model: PreTrainedModel, *, length_groups: int = 4) -> None:
        super().__init__()
        self.model = model
        self.length_groups = length_groups
        self.dim: int = model.config.hidden_size

    @classmethod
    def from_config(cls, *, model_type: str, **settings: Any) -> TextEncoder:
        """A fresh encoder of a Hugging Face architecture, without a pooling layer where the architecture has one."""
        config = AutoConfig.for_model(model_type, **settings)
        model = AutoModel.from_config(config, attn_implementation="sdpa")
        if getattr(model, "pooler", None) is not None:  # unused parameters would make DistributedDataParallel wait
            model.pooler = None
        return cls(model)

    @classmethod
    def from_pretrained(cls, path: str) -> TextEncoder:
        """An encoder from a folder in Hugging Face layout."""
        model = AutoModel.from_pretrained(path, attn_implementation="sdpa")
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        return cls(model)

    def forward(self, tokens: Tensor) -> Tensor:
        """Args: tokens: (N, W) int64, N >= 1, 0 is padding. Returns: (N, dim) float; a row of nothing but padding gives zero.

        Texts of like length are encoded together, so that little is spent on padding.
        """
        lengths = (tokens != 0).sum(1)
        order = lengths.argsort(stable=True)
        groups = order.chunk(max(1, min(self.length_groups, tokens.shape[0] // 32)))
        encoded = torch.cat([self._encode(tokens[rows, : max(int(lengths[rows[-1]]), 1)]) for rows in groups])
        return encoded[order.argsort()]

    def _encode(self, tokens: Tensor) -> Tensor:
        mask = tokens != 0  # (N, W)
        attended = mask.clone()
        attended[:, 0] = True  # attention over no token at all is undefined
        hidden = self.model(input_ids=tokens, attention_mask=attended.long()).last_hidden_state  # (N, W, dim)
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def pairwise_text_features(query: Tensor, title: Tensor) -> Tensor:
    """What a tower reads of two texts (C, D) each: both, their product and their distance, (C, 4 D)."""
    return torch.cat([query, title, query * title, (query - title).abs()], dim=1)
