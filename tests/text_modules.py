"""Small modules of the text side, over a vocabulary of 50 tokens of which those from 40 on are numbers."""

import torch

from prectr_torchrec.modules import TextEncoder, TextMatch


def encoder(**settings: object) -> TextEncoder:
    torch.manual_seed(0)
    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return TextEncoder.from_config(model_type="bert", **{**small, **settings}).eval()


def match() -> TextMatch:
    idf = torch.full((50,), 2.0)
    idf[30] = 6.0
    is_number = torch.zeros(50, dtype=torch.bool)
    is_number[40:] = True
    return TextMatch(idf, is_number)
