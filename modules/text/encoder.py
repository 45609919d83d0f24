"""Text encoders: a small Hugging Face model, or hashed n-grams, as one more tower."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ..hugging_face import from_folder

Precision = Literal["fp32", "bf16"]
"""In what a text encoder multiplies while it is trained; its weights and what it gives out are fp32 in any case."""


class TextEncoder(nn.Module):
    r"""Encodes each text once, by a small transformer: the mean of its last hidden states.

    Of a text with tokens :math:`w_1..w_n` and last hidden states :math:`h_1..h_n`, of width `dim` each, the vector is
    :math:`\frac{1}{n} \sum_i h_i`, special tokens among them (mean pooling as in arXiv 1908.10084). A text without tokens has
    the vector 0. What is encoded of a text does not depend on the other texts, nor on the width of the batch.

    PRECTR-V2 (arXiv 2602.20676) distils such an encoder from an LLM and trains it inside the ranker; by its summaries it has
    three layers and about two million parameters.

    Args:
        model: a Hugging Face encoder whose output has `last_hidden_state`; a pooling layer is taken off.
        length_groups: batches by length that a large batch is cut into.
        precision: bf16: while training, products are taken in bf16; weights and what is given out stay fp32.

    Attributes:
        dim: width of a text vector, the model's `hidden_size`.

    Example::

        encoder = TextEncoder.from_config(
            model_type="bert", vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        tokens = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])  # (N, W), 0 is padding
        assert encoder(tokens).shape == (2, 16)
        assert encoder.token_states(tokens).shape == (2, 4, 16)
    """

    def __init__(self, model: PreTrainedModel, *, length_groups: int = 4, precision: Precision = "fp32") -> None:
        super().__init__()
        self.model = model
        if getattr(model, "pooler", None) is not None:  # unused parameters would make DistributedDataParallel wait
            model.register_module("pooler", None)
        if precision == "bf16" and not torch.cuda.is_available():
            model.set_attn_implementation("eager")  # on a CPU the fused attention's backward pass doubles a step in bf16
        self.length_groups, self.precision = length_groups, precision
        self.dim: int = model.config.hidden_size
        self.has_token_types = getattr(model.config, "type_vocab_size", 0) > 1

    @classmethod
    def from_config(cls, *, model_type: str, precision: Precision = "fp32", **settings: Any) -> TextEncoder:
        """A fresh encoder of a Hugging Face architecture.

        Args:
            model_type: its name, such as "bert".
            precision: as of the class.
            settings: of the architecture's configuration, such as `hidden_size`.
        """
        config = AutoConfig.for_model(model_type, **settings)
        return cls(AutoModel.from_config(config, attn_implementation="sdpa"), precision=precision)

    @classmethod
    def from_pretrained(cls, path: str, *, precision: Precision = "fp32") -> TextEncoder:
        """An encoder with the weights of a folder in Hugging Face layout, as fp32 whatever they were saved in.

        Args:
            path: the folder.
            precision: as of the class.

        Raises:
            ValueError: the folder is none, is damaged, or needs code of its own.
        """
        return cls(from_folder(AutoModel, path, attn_implementation="sdpa", dtype=torch.float32), precision=precision)

    @classmethod
    def from_settings(cls, path: str, *, precision: Precision = "fp32") -> TextEncoder:
        """A fresh encoder such as that of a folder, of which no more than `config.json` is read.

        Args:
            path: the folder.
            precision: as of the class.

        Raises:
            ValueError: the folder is none, is damaged, or needs code of its own.
        """
        config = from_folder(AutoConfig, path)
        return cls(AutoModel.from_config(config, attn_implementation="sdpa", trust_remote_code=False), precision=precision)

    def train(self, mode: bool = True) -> TextEncoder:
        """As of `nn.Module`; an encoder that is kept still has no dropout."""
        super().train(mode)
        if not any(weights.requires_grad for weights in self.parameters()):
            self.model.eval()
        return self

    def forward(self, tokens: Tensor, token_types: Tensor | None = None) -> Tensor:
        """The vectors of texts.

        Args:
            tokens: (N, W) int64, N >= 1, 0 is padding, on the right.
            token_types: (N, W) int64; None: all 0. Left out where the architecture has none.

        Returns:
            (N, dim) float32; a row of nothing but padding gives zero.
        """
        count = (tokens != 0).sum(1, keepdim=True).clamp(min=1)
        return self.token_states(tokens, token_types).sum(1) / count

    def token_states(self, tokens: Tensor, token_types: Tensor | None = None) -> Tensor:
        """The last hidden states.

        Texts of like length are encoded together, so that little is spent on padding.

        Args:
            tokens: (N, W) int64, N >= 1, 0 is padding, on the right.
            token_types: (N, W) int64; None: all 0. Left out where the architecture has none.

        Returns:
            (N, W, dim) float32, zero at padding.
        """
        lengths, order = (tokens != 0).sum(1).sort(stable=True)
        groups = max(1, min(self.length_groups, tokens.shape[0] // 32))
        widths = torch.stack([of_group[-1] for of_group in lengths.chunk(groups)]).clamp(min=1).tolist()  # one copy to the host
        states = []
        for rows, width in zip(order.chunk(groups), widths, strict=True):
            types = token_types[rows, :width] if token_types is not None and self.has_token_types else None
            states.append(F.pad(self._encode(tokens[rows, :width], types), (0, 0, 0, tokens.shape[1] - width)))
        return torch.cat(states)[order.argsort()]

    def _encode(self, tokens: Tensor, token_types: Tensor | None) -> Tensor:
        mask = tokens != 0  # (N, W)
        attended = mask.clone()
        attended[:, 0] = True  # attention over no token at all is undefined
        types = {} if token_types is None else {"token_type_ids": token_types}
        bf16 = self.precision == "bf16" and self.training
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bf16):
            hidden = self.model(input_ids=tokens, attention_mask=attended.long(), **types).last_hidden_state  # (N, W, dim)
        return hidden.float() * mask.unsqueeze(-1)


class NgramEncoder(nn.Module):
    r"""BERT2DNN (arXiv 2010.10442): a bag of hashed n-grams and an MLP, in place of a transformer.

    Let :math:`w_1..w_m` be the token ids of a text, :math:`G_n` its n-grams of order :math:`n = 1..N` (n neighbouring tokens,
    special ones not among them), :math:`h(g)` the hash of an n-gram to a row, and :math:`E` a table. The text's vector is

    .. math:: \mathrm{MLP}([\bar e_1; ...; \bar e_N]), \quad \bar e_n = \frac{1}{|G_n|} \sum_{g \in G_n} E[h(g)],

    with :math:`\bar e_n = 0` where a text has no such n-gram. The table lies in a TorchRec `EmbeddingBagCollection` that is
    replicated and trained as a dense parameter, see `ReplicatedEmbeddingBagCollection`.

    Args:
        rows: of the table; n-grams share rows by chance.
        embedding_dim: width of the table, a multiple of 4.
        hidden: widths of the MLP; the last one is that of a text vector.
        max_n: N, the longest n-grams.
        special_tokens: ids that are no words; 0 is padding.

    Attributes:
        dim: width of a text vector.

    Example::

        encoder = NgramEncoder(rows=1000, embedding_dim=8, hidden=(32, 16))
        tokens = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])  # (N, W), 0 is padding
        assert encoder(tokens).shape == (2, 16)
    """

    def __init__(
        self,
        *,
        rows: int = 30_000,
        embedding_dim: int = 64,
        hidden: tuple[int, ...] = (128, 128),
        max_n: int = 3,
        special_tokens: tuple[int, ...] = (0, 1, 2, 3, 4),
    ) -> None:
        super().__init__()
        self.rows, self.special_tokens = rows, special_tokens
        self.orders = list(range(1, max_n + 1))
        table = EmbeddingBagConfig(
            name="ngram",
            num_embeddings=rows,
            embedding_dim=embedding_dim,
            pooling=PoolingType.MEAN,
            feature_names=[f"{n}_gram" for n in self.orders],
        )
        self.bags = ReplicatedEmbeddingBagCollection(tables=[table])
        nn.init.normal_(self.bags.embedding_bags["ngram"].weight, std=embedding_dim**-0.5)
        layers: list[nn.Module] = []
        width = embedding_dim * max_n
        for out in hidden:
            layers += [nn.ReLU()] * bool(layers) + [nn.Linear(width, out)]
            width = out
        self.mlp = nn.Sequential(*layers)
        self.dim = width

    def forward(self, tokens: Tensor) -> Tensor:
        """The vectors of texts.

        Args:
            tokens: (N, W) int64, N >= 1, 0 is padding, on the right.

        Returns:
            (N, dim) float32.
        """
        special = torch.tensor(self.special_tokens, device=tokens.device)
        word = ~torch.isin(tokens, special)
        values, lengths = [], []
        for n in self.orders:
            rows, there = self._hash(tokens, word, n)
            values.append(rows[there])
            lengths.append(there.sum(1))
        features = KeyedJaggedTensor([f"{n}_gram" for n in self.orders], torch.cat(values), lengths=torch.cat(lengths))
        return self.mlp(self.bags(features).values())

    def _hash(self, tokens: Tensor, word: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Rows (N, W - n + 1) of the n-grams that begin at each token, and which of them are whole."""
        width = max(tokens.shape[1] - n + 1, 0)
        key, there = torch.full_like(tokens[:, :width], n), torch.ones_like(word[:, :width])
        for offset in range(n):
            key = (key * 1_000_003 + tokens[:, offset : offset + width]) % 2_147_483_647  # a prime: products stay within int64
            there = there & word[:, offset : offset + width]
        return (key * 40_503 % 2_147_483_647) % self.rows, there


class ReplicatedEmbeddingBagCollection(EmbeddingBagCollection):
    """A collection that every rank holds whole.

    TorchRec's planner and `DistributedModelParallel` know what to shard by its exact class, so that this one stays as it is: its
    tables are dense parameters, averaged by DistributedDataParallel and stepped by the optimizer of the towers. It computes
    what an `EmbeddingBagCollection` computes, and has its arguments.

    Args:
        tables: the tables' `EmbeddingBagConfig`s.
        is_weighted: whether ids come with weights.
        device: where the tables are.

    Example::

        from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

        table = EmbeddingBagConfig(name="word", num_embeddings=50, embedding_dim=4, feature_names=["query"])
        bags = ReplicatedEmbeddingBagCollection(tables=[table])
        words = KeyedJaggedTensor(["query"], torch.tensor([7, 8, 9]), lengths=torch.tensor([2, 1]))
        assert bags(words)["query"].shape == (2, 4)
    """


def pairwise_text_features(query: Tensor, title: Tensor) -> Tensor:
    """What a tower reads of two texts: both, their product and their distance.

    Args:
        query: (..., D) float.
        title: (..., D) float.

    Returns:
        (..., 4 D) float, `[q, t, q * t, |q - t|]`.
    """
    return torch.cat([query, title, query * title, (query - title).abs()], dim=-1)
