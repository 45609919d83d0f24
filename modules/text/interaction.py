"""How query and title meet: read apart (`dual`), apart with token-level interaction (`late`), or together (`cross`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import NgramEncoder, TextEncoder, pairwise_text_features


class Interaction(nn.Module):
    """From the tokens of two texts to what a tower reads of the pair, in two steps: `encode` either text, then `pair` them.

    What `encode` gives is one row a text and depends on this text alone: titles may be encoded once and kept. This class says
    what the ways to do it have in common; each of them sets the attributes and has `encode` and `pair`.

    Attributes:
        encoder: of the texts.
        pair_dim: P, width of a pair's vector.
        feature_dim: width of what the tower reads.
        title_dim: width of a title's own vector, the last columns of a pair's; 0: there is none.

    Example::

        class Product(Interaction):  # another way: texts read apart, the product of their vectors
            def __init__(self, encoder):
                super().__init__()
                self.encoder, self.pair_dim, self.feature_dim, self.title_dim = encoder, encoder.dim, encoder.dim, 0

            def encode(self, tokens):
                return self.encoder(tokens)

            def pair(self, query, title):
                return query * title

        interaction = Product(NgramEncoder(rows=100, embedding_dim=8, hidden=(16,)))
        query, title = torch.tensor([[7, 8]]), torch.tensor([[7, 9, 0]])
        pair = interaction.pair(interaction.encode(query), interaction.encode(title))
        assert interaction.features(pair).shape == (1, 16)
    """

    pair_dim: int
    feature_dim: int
    title_dim: int
    encoder: TextEncoder | NgramEncoder

    def encode(self, tokens: Tensor) -> Tensor:
        """What is kept of texts.

        Args:
            tokens: (N, W) int64, 0 is padding, on the right.

        Returns:
            (N, ...).
        """
        raise NotImplementedError

    def pair(self, query: Tensor, title: Tensor) -> Tensor:
        """What is kept of pairs.

        Args:
            query: (C, ...) rows of `encode`.
            title: (C, ...) rows of `encode`, of the same pairs.

        Returns:
            (C, P) float.
        """
        raise NotImplementedError

    def features(self, pair: Tensor) -> Tensor:
        """What a tower reads of pairs.

        Args:
            pair: (C, P) float.

        Returns:
            (C, feature_dim) float.
        """
        return pair

    def title_vector(self, pair: Tensor) -> Tensor:
        """The titles' own vectors within the pairs'.

        Args:
            pair: (C, P) float.

        Returns:
            (C, title_dim) float.
        """
        return pair[:, pair.shape[1] - self.title_dim :]


class DualInteraction(Interaction):
    r"""Query and title read apart, and compared as a whole.

    With the vectors :math:`q` and :math:`t` of query and title, of the encoder's width :math:`D`, a tower reads
    :math:`[q; t; q \odot t; |q - t|]` (the comparison of arXiv 1705.02364). `[q; t]` is what is kept of a pair.

    Args:
        encoder: of both texts.

    Example::

        interaction = DualInteraction(NgramEncoder(rows=100, embedding_dim=8, hidden=(16,)))
        titles = interaction.encode(torch.tensor([[7, 9, 0], [8, 5, 6]]))  # (C, D), may be kept
        query = interaction.encode(torch.tensor([[7, 8]])).expand(2, -1)
        pair = interaction.pair(query, titles)  # (C, 2 D)
        assert interaction.features(pair).shape == (2, 64)
        assert interaction.title_vector(pair).equal(titles)
    """

    def __init__(self, encoder: TextEncoder | NgramEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.pair_dim, self.feature_dim, self.title_dim = 2 * encoder.dim, 4 * encoder.dim, encoder.dim

    def encode(self, tokens: Tensor) -> Tensor:
        """The vectors (N, D) float of texts (N, W) int64."""
        return self.encoder(tokens)

    def pair(self, query: Tensor, title: Tensor) -> Tensor:
        """The vectors (C, D) of query and title side by side, (C, 2 D)."""
        return torch.cat([query, title], dim=1)

    def features(self, pair: Tensor) -> Tensor:
        """Both vectors, their product and their distance, (C, 4 D) of (C, 2 D)."""
        query, title = pair.chunk(2, dim=1)
        return pairwise_text_features(query, title)


class LateInteraction(Interaction):
    r"""Query and title read apart, compared token by token.

    Let :math:`q_i` and :math:`t_j` be the token states of query and title, projected to a small width :math:`D` and normalised:
    these are what is kept of a text. As in ColBERT (arXiv 2004.12832) each query token looks for its best match,
    :math:`m_i = \max(0, \max_j q_i \cdot t_j)`. Instead of summing these, each token is compared with what it found: with a
    learned scale :math:`s` and a learned logit :math:`\nu` of "nothing fits",

    .. math:: t^*_i = \frac{\sum_j e^{s\, q_i \cdot t_j} t_j}{e^\nu + \sum_j e^{s\, q_i \cdot t_j}}, \quad
        c_i = \mathrm{relu}(W [q_i; t^*_i; q_i \odot t^*_i; |q_i - t^*_i|; m_i]).

    With learned token weights :math:`\omega_i \propto e^{u \cdot q_i}` a pair's vector is
    :math:`[\sum_i \omega_i c_i; \max_i c_i; \sum_i \omega_i m_i; \bar m'; \sum_i \omega_i q_i; \bar t]`, where
    :math:`\bar m'` is the mean over the title's tokens of their own best match, and :math:`\bar t` the mean of the title's
    states. Comparing and aggregating is after arXiv 1606.01933; the pooling is re-derived here.

    Args:
        encoder: of both texts; its token states are read.
        dim: D, width of a kept token state.
        hidden: width of a comparison, :math:`c_i`.

    Example::

        encoder = TextEncoder.from_config(
            model_type="bert", vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        interaction = LateInteraction(encoder, dim=8, hidden=12)
        titles = interaction.encode(torch.tensor([[7, 9, 0], [8, 5, 6]]))  # (C, W_t, D), may be kept
        query = interaction.encode(torch.tensor([[7, 8]]))  # (1, W_q, D), of both titles
        pair = interaction.pair(query, titles)
        assert pair.shape == (2, 2 * 12 + 2 + 2 * 8)
    """

    def __init__(self, encoder: TextEncoder, *, dim: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = nn.Linear(encoder.dim, dim)
        self.compare = nn.Linear(4 * dim + 1, hidden)
        self.weight = nn.Linear(dim, 1)
        self.scale = nn.Parameter(torch.tensor(10.0).log())
        self.nothing = nn.Parameter(torch.zeros(()))
        self.title_dim = dim
        self.pair_dim = self.feature_dim = 2 * hidden + 2 + 2 * dim

    def encode(self, tokens: Tensor) -> Tensor:
        """The states (N, W, D) float of texts (N, W) int64: of length 1, zero at padding."""
        assert isinstance(self.encoder, TextEncoder)
        states = F.normalize(self.project(self.encoder.token_states(tokens)), dim=2)
        return states * (tokens != 0).unsqueeze(2)

    def pair(self, query: Tensor, title: Tensor) -> Tensor:
        """What the tokens of each pair find of each other.

        Args:
            query: (C, W_q, D) float, or (1, W_q, D) for one query of all titles.
            title: (C, W_t, D) float; half precision will do for what is kept.

        Returns:
            (C, P) float.
        """
        query, title = (_trim(states).to(self.compare.weight.dtype) for states in (query, title))
        query = query.expand(title.shape[0], -1, -1)
        asked, said = query.any(2), title.any(2)  # (C, W): no kept state is zero
        similarity = query @ title.transpose(1, 2)  # (C, W_q, W_t), 0 at padding
        best = F.pad(similarity, (1, 0)).amax(2)  # (C, W_q), 0 where nothing is alike
        logits = (similarity * self.scale.exp()).masked_fill(~said.unsqueeze(1), -torch.inf)
        nothing = self.nothing.expand(logits.shape[0], logits.shape[1], 1)
        found = torch.cat([nothing, logits], dim=2).softmax(2)[..., 1:] @ title  # (C, W_q, D)
        compared = torch.relu(self.compare(torch.cat([pairwise_text_features(query, found), best.unsqueeze(2)], dim=2)))
        compared = compared * asked.unsqueeze(2)
        weight = (self.weight(query).squeeze(2).exp() * asked).unsqueeze(2)  # (C, W_q, 1)
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
        answered = F.pad(similarity, (0, 0, 1, 0)).amax(1)  # (C, W_t)
        parts = [
            (compared * weight).sum(1),
            compared.amax(1),
            (best.unsqueeze(2) * weight).sum(1),
            _mean(answered.unsqueeze(2), said),
            (query * weight).sum(1),
            _mean(title, said),
        ]
        return torch.cat(parts, dim=1)


class CrossInteraction(Interaction):
    """Query and title read together as `[CLS] query [SEP] title [SEP]` (arXiv 1810.04805), once per distinct pair.

    A pair's vector is the encoder's of the joined text. Nothing of a title can be kept: `encode` gives its tokens.

    Args:
        encoder: of the joined text.
        cls_token: id of [CLS].
        sep_token: id of [SEP].

    Example::

        encoder = TextEncoder.from_config(
            model_type="bert", vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        interaction = CrossInteraction(encoder)
        query, title = torch.tensor([[2, 7, 3]]), torch.tensor([[2, 7, 9, 3]])
        tokens, types = interaction.join(query, title)
        assert tokens.tolist() == [[2, 7, 3, 7, 9, 3, 0, 0, 0, 0]] and types.tolist() == [[0, 0, 0, 1, 1, 1, 0, 0, 0, 0]]
        assert interaction.pair(query, title).shape == (1, 16)
    """

    def __init__(self, encoder: TextEncoder, *, cls_token: int = 2, sep_token: int = 3) -> None:
        super().__init__()
        self.encoder = encoder
        self.cls_token, self.sep_token = cls_token, sep_token
        self.pair_dim = self.feature_dim = encoder.dim
        self.title_dim = 0

    def encode(self, tokens: Tensor) -> Tensor:
        """The tokens (N, W) int64 themselves."""
        return tokens

    def pair(self, query: Tensor, title: Tensor) -> Tensor:
        """The vectors of the joined texts.

        Args:
            query: (C, W_q) int64 tokens, or (1, W_q) for one query of all titles.
            title: (C, W_t) int64 tokens.

        Returns:
            (C, dim) float, `dim` the encoder's.
        """
        query = query.expand(title.shape[0], -1)
        distinct, index = torch.cat([query, title], dim=1).unique(dim=0, return_inverse=True)
        tokens, types = self.join(distinct[:, : query.shape[1]], distinct[:, query.shape[1] :])
        return self.encoder(tokens, types)[index]

    def join(self, query: Tensor, title: Tensor) -> tuple[Tensor, Tensor]:
        """Joins texts, leaving out the [CLS] and [SEP] of their own.

        Args:
            query: (N, W_q) int64 tokens.
            title: (N, W_t) int64 tokens.

        Returns:
            The tokens (N, W_q + W_t + 3) int64, padded on the right, and their types: 1 for the title and its [SEP], else 0.
        """
        cls, sep = (title.new_full((title.shape[0], 1), token) for token in (self.cls_token, self.sep_token))
        texts = [text.masked_fill((text == self.cls_token) | (text == self.sep_token), 0) for text in (query, title)]
        parts = [cls, texts[0], sep, texts[1], sep]
        tokens = torch.cat(parts, dim=1)
        types = torch.cat([torch.full_like(part, int(place > 2)) for place, part in enumerate(parts)], dim=1)
        order = (tokens == 0).long().argsort(dim=1, stable=True)
        tokens = tokens.gather(1, order)
        return tokens, types.gather(1, order) * (tokens != 0)


@torch.fx.wrap
def _trim(states: Tensor) -> Tensor:
    """States (C, W, D) without the columns, on the right, that are padding in all rows; one at least.

    On a GPU all columns stay, which the host need not wait for.
    """
    if states.device.type != "cpu":
        return states
    return states[:, : max(int(states.any(2).sum(1).max()), 1)]


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean (C, D) of states (C, W, D), zero outside the mask (C, W); zero where it is empty."""
    return (states * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
