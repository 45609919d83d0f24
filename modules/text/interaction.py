"""How query and title meet: read apart (`dual`), apart with token-level interaction (`late`), or together (`cross`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import NgramEncoder, TextEncoder, pairwise_text_features


class Interaction(nn.Module):
    """From the tokens of two texts to what a tower reads of the pair, in two steps: `encode` either text, then `pair` them.

    What `encode` gives is one row a text and depends on this text alone: titles may be encoded once and kept.

    Attributes:
        pair_dim: P, width of a pair's vector.
        feature_dim: width of what the tower reads.
        title_dim: width of a title's own vector; 0: there is none.
    """

    pair_dim: int
    feature_dim: int
    title_dim: int
    encoder: TextEncoder | NgramEncoder

    def encode(self, tokens: Tensor) -> Tensor:
        """Args: tokens: (N, W) int64, 0 is padding. Returns: (N, ...)."""
        raise NotImplementedError

    def pair(self, query: Tensor, title: Tensor) -> Tensor:
        """Args: query, title: (C, ...) rows of `encode`. Returns: (C, P)."""
        raise NotImplementedError

    def features(self, pair: Tensor) -> Tensor:
        """Args: pair: (C, P). Returns: (C, feature_dim)."""
        return pair

    def title_vector(self, pair: Tensor) -> Tensor:
        """Args: pair: (C, P). Returns: (C, title_dim), the title's part of it."""
        return pair[:, pair.shape[1] - self.title_dim :]


class DualInteraction(Interaction):
    """Query and title read apart: their vectors `[q, t, q * t, |q - t|]`.

    Args:
        encoder: of both texts.
    """

    def __init__(self, encoder: TextEncoder | NgramEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.pair_dim, self.feature_dim, self.title_dim = 2 * encoder.dim, 4 * encoder.dim, encoder.dim

    def encode(self, tokens: Tensor) -> Tensor:
        """Returns: (N, dim)."""
        return self.encoder(tokens)

    def pair(self, query: Tensor, title: Tensor) -> Tensor:
        return torch.cat([query, title], dim=1)

    def features(self, pair: Tensor) -> Tensor:
        query, title = pair.chunk(2, dim=1)
        return pairwise_text_features(query, title)


class LateInteraction(Interaction):
    r"""Query and title read apart, compared token by token.

    The token states, projected to a small width and normalised, :math:`q_i` and :math:`t_j`, are what is kept of a text. As in
    ColBERT (arXiv 2004.12832) each query token looks for its best match, :math:`m_i = \max_j q_i \cdot t_j`; instead of summing
    these, each token is compared with what it found, :math:`t^*_i = \sum_j \mathrm{softmax}_j(s\, q_i \cdot t_j) t_j` beside a
    learned "nothing fits", and the comparisons :math:`\mathrm{relu}(W [q_i, t^*_i, q_i t^*_i, |q_i - t^*_i|, m_i])` are pooled
    by a learned weight and by their maximum (after the compare-and-aggregate of arXiv 1606.01933).

    Args:
        encoder: of both texts; its token states are read.
        dim: D, width of a kept token state.
        hidden: width of a comparison.
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
        """Returns: (N, W, D), zero at padding."""
        assert isinstance(self.encoder, TextEncoder)
        states = F.normalize(self.project(self.encoder.token_states(tokens)), dim=2)
        return states * (tokens != 0).unsqueeze(2)

    def pair(self, query: Tensor, title: Tensor) -> Tensor:
        """Args: query: (C, W_q, D), or (1, W_q, D) for one query of all titles; title: (C, W_t, D)."""
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
    """Query and title read together as `[CLS] query [SEP] title [SEP]`, once per distinct pair; nothing of a title can be kept.

    Args:
        encoder: of the pair.
        cls_token, sep_token: their ids.
    """

    def __init__(self, encoder: TextEncoder, *, cls_token: int = 2, sep_token: int = 3) -> None:
        super().__init__()
        self.encoder = encoder
        self.cls_token, self.sep_token = cls_token, sep_token
        self.pair_dim = self.feature_dim = encoder.dim
        self.title_dim = 0

    def encode(self, tokens: Tensor) -> Tensor:
        """Returns: the tokens."""
        return tokens

    def pair(self, query: Tensor, title: Tensor) -> Tensor:
        """Args: query, title: (C, W) int64 tokens."""
        query = query.expand(title.shape[0], -1)
        distinct, index = torch.cat([query, title], dim=1).unique(dim=0, return_inverse=True)
        tokens, types = self.join(distinct[:, : query.shape[1]], distinct[:, query.shape[1] :])
        return self.encoder(tokens, types)[index]

    def join(self, query: Tensor, title: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (N, W_q + W_t + 3) int64 of `[CLS] query [SEP] title [SEP]`, padded on the right, and their types.

        [CLS] and [SEP] of the single texts are left out first.
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
    """States (C, W, D) without the columns, on the right, that are padding in all rows; one at least."""
    return states[:, : max(int(states.any(2).sum(1).max()), 1)]


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean (C, D) of states (C, W, D), zero outside the mask (C, W); zero where it is empty."""
    return (states * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
