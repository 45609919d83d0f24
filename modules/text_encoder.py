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

    Example::

        encoder = TextEncoder.from_config(vocab_size=8000, model_type="bert", hidden_size=128, num_hidden_layers=3)
        vectors = encoder(tokens)  # (N, 128)
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
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
        """Args: tokens: (N, W) int64, N >= 1, 0 is padding. Returns: (N, dim) float; a row of nothing but padding gives zero."""
        mask = tokens != 0  # (N, W)
        width = max(int(mask.sum(1).max()), 1)
        tokens, mask = tokens[:, :width], mask[:, :width]  # columns that every text of the batch leaves empty
        safe = mask.clone()
        safe[:, 0] = True  # attention over no token at all is undefined
        hidden = self.model(input_ids=tokens, attention_mask=safe.long()).last_hidden_state  # (N, W, dim)
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def pairwise_text_features(query: Tensor, title: Tensor) -> Tensor:
    """What a tower reads of two texts (C, D) each: both, their product and their distance, (C, 4 D)."""
    return torch.cat([query, title, query * title, (query - title).abs()], dim=1)
