"""Folders in Hugging Face layout, which anybody may have made: read, and nothing in them is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def from_folder(kind: Any, path: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained` of a folder: weights alone, no code of the folder's own, nothing from elsewhere.

    Args:
        kind: a class of Transformers that has `from_pretrained`, such as `AutoModel`.
        path: the folder, in Hugging Face layout.
        options: further arguments of `from_pretrained`.

    Raises:
        ValueError: the folder needs code of its own, is damaged, or holds something else; names it.

    Example::

        import tempfile

        from transformers import AutoConfig

        with tempfile.TemporaryDirectory() as folder:
            AutoConfig.for_model("bert", hidden_size=16).save_pretrained(folder)
            config = from_folder(AutoConfig, folder)
        assert config.hidden_size == 16
    """
    if not Path(path).is_dir():  # Transformers would take it for a name on its hub
        raise ValueError(f"{path}: no such folder; a model is a folder in Hugging Face layout")
    try:
        return kind.from_pretrained(str(path), trust_remote_code=False, local_files_only=True, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what is damaged may end in any of them, some without a class of their own
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own (`auto_map`), which is never run; take a model that Transformers has the code of"
        else:
            reason = f"{kind.__name__} cannot read it: {next(iter(str(error).splitlines()), type(error).__name__)}"
        raise ValueError(f"{path}: {reason}") from error


def max_tokens(model: PreTrainedModel) -> int | None:
    """Tokens of the longest text that a model reads, special ones included; None: any length.

    A table of positions with a padding row, such as RoBERTa's, begins behind that row: of 514 rows 512 can be used.

    Args:
        model: a model of Transformers.

    Example::

        encoder = TextEncoder.from_config(
            model_type="bert", vocab_size=50, hidden_size=16, num_attention_heads=2, max_position_embeddings=64
        )
        assert max_tokens(encoder.model) == 64
    """
    limits = [getattr(model.config.get_text_config(), "max_position_embeddings", None)]
    for name, table in model.named_modules():
        if isinstance(table, nn.Embedding) and name.split(".")[-1] in _POSITIONS:
            limits.append(table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)


_POSITIONS = ("position_embeddings", "wpe")
