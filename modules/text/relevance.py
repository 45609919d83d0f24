"""Relevance of a title to a query, from their texts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..inputs import Inputs, Texts
from ..layers import hidden_layers
from .interaction import Interaction
from .match import TextMatch


class Relevance(NamedTuple):
    """What the relevance tower says of C pairs of query and title."""

    hidden: Tensor
    """(C, H) float, the relevance vector `a`, H the last width of the tower."""
    log_pi: Tensor
    """(C, K) float, log probabilities of the levels 1..K."""


class TextReading(NamedTuple):
    """What the relevance side makes of each candidate's query and title."""

    relevance: Relevance
    """Relevance vectors (C, H) and log probabilities of the levels (C, K)."""
    match: Tensor
    """(C, M) float, hand-made features of text match; M may be 0."""
    pair: Tensor
    """(C, P) float, the interaction's vector of the pair; P may be 0."""
    title: Tensor
    """(C, T) float, the encoder's vector of the title alone; T may be 0."""
    further: Mapping[str, Tensor] = {}
    """(C, F) float by the name of a further text of the items: what a tower reads of query and this text."""

    @classmethod
    def of_nothing(cls, rows: Tensor) -> TextReading:
        """For C rows of a ranker without a relevance side: no features, no levels."""
        none = _nothing(rows)
        return cls(Relevance(none, none), none, none, none)


class TextEncodings(NamedTuple):
    """Each candidate's query and title, as tokens and as the encoder has them."""

    query_tokens: Tensor
    """(C, W_q) int64."""
    title_tokens: Tensor
    """(C, W_t) int64."""
    query: Tensor
    """(C, ...) rows of `TextRelevance.encode`."""
    title: Tensor
    """(C, ...) rows of `TextRelevance.encode`."""


class SwappedTitles(NamedTuple):
    """n of the candidates under a title of another request."""

    rows: Tensor
    """(n,) int64, which of the candidates."""
    pair: Tensor
    """(n, P) float, vectors of query and other title."""
    match: Tensor
    """(n, match_dim) float, features of the same pairs."""
    foreign: Tensor
    """(n,) bool: the query is truly another one, the row real."""


class RelevanceTower(nn.Module):
    r"""Level probabilities of a (query, item) pair from text alone: what it says of a pair holds for any user.

    With the text features :math:`f` of a pair, the relevance vector :math:`a = \mathrm{MLP}(f)` and a linear layer of weights
    :math:`W` and bias :math:`b`, the probability of level :math:`k \in 1..K` is :math:`\pi_k = \mathrm{softmax}_k(W a + b)`: the
    relevance side of PRECTR (arXiv 2503.18395), of which only summaries were at hand.

    Args:
        in_dim: width of the text features.
        hidden: widths of the hidden layers; the last one is that of the relevance vector.
        num_levels: K.
        dropout: on the hidden layers.

    Example::

        relevance = RelevanceTower(24, [16, 8], num_levels=4)(torch.randn(3, 24))
        assert relevance.hidden.shape == (3, 8) and relevance.log_pi.shape == (3, 4)
        assert torch.allclose(relevance.log_pi.exp().sum(1), torch.ones(3))
    """

    def __init__(self, in_dim: int, hidden: list[int], num_levels: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = hidden_layers(in_dim, hidden, dropout)
        self.head = nn.Linear(hidden[-1], num_levels)

    def forward(self, text_features: Tensor) -> Relevance:
        """The levels of pairs.

        Args:
            text_features: (C, in_dim) float.

        Returns:
            (C, hidden[-1]) and (C, K) float.
        """
        hidden = self.layers(text_features)
        return Relevance(hidden, self.head(hidden).log_softmax(1))


class TextRelevance(nn.Module):
    r"""Interaction, match features and relevance tower: token ids in, level probabilities out.

    With what an interaction reads of query q and title t, :math:`f(q, t)`, and the match features :math:`m(q, t)`, the tower
    gives :math:`\pi = \mathrm{RelevanceTower}([f(q, t); m(q, t)])`. Texts are encoded, and pairs matched, by methods of their
    own, so that a caller does either once and uses it twice.

    Args:
        interaction: how the encoder reads the texts, or None for match features alone.
        match: match features, or None for the encoder alone.
        hidden: widths of the relevance tower.
        num_levels: K.
        dropout: of the tower.

    Attributes:
        title_dim: width of a title's own vector; 0: there is none.
        match_dim: width of the match features; 0: there are none.
        feature_dim: width of what the tower reads of an encoded pair; 0: there is no encoder.

    Raises:
        ValueError: there is neither an interaction nor match features.

    Example::

        match = TextMatch(idf=torch.full((50,), 2.0), is_number=torch.zeros(50, dtype=torch.bool))
        encoder = NgramEncoder(rows=100, embedding_dim=8, hidden=(16,))
        relevance = TextRelevance(DualInteraction(encoder), match, [32, 8], num_levels=4)
        query_tokens, title_tokens = torch.tensor([[7, 8], [5, 0]]), torch.tensor([[9, 7, 8], [9, 5, 0]])
        titles = relevance.encode(title_tokens)  # may be kept
        pair = relevance.pair(relevance.encode(query_tokens), titles)
        out = relevance(pair, relevance.match_features(query_tokens, title_tokens))
        assert out.log_pi.shape == (2, 4)
    """

    def __init__(
        self,
        interaction: Interaction | None,
        match: TextMatch | None,
        hidden: list[int],
        num_levels: int,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if interaction is None and match is None:
            raise ValueError("a relevance tower needs the text encoder, the match features, or both")
        self.interaction, self.match = interaction, match
        self.title_dim = interaction.title_dim if interaction is not None else 0
        self.match_dim = match.num_features if match is not None else 0
        self.feature_dim = interaction.feature_dim if interaction is not None else 0
        self.tower = RelevanceTower(self.feature_dim + self.match_dim, hidden, num_levels, dropout=dropout)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """As of `RankingModel.groups`: `encoder`, and the rest as `relevance`."""
        encoder = list(self.interaction.encoder.parameters()) if self.interaction is not None else []
        others = [p for p in self.parameters() if not any(p is e for e in encoder)]
        return {"encoder": encoder, "relevance": others}

    def encode(self, tokens: Tensor) -> Tensor:
        """One row (N, ...) a text (N, W), of that text alone; those of titles may be kept. (N, 0) without an encoder."""
        return self.interaction.encode(tokens) if self.interaction is not None else _nothing(tokens)

    def pair(self, query: Tensor, title: Tensor) -> Tensor:
        """Vectors (C, P) of the pairs of `encode`'s rows (C, ...); P is 0 without an encoder."""
        return self.interaction.pair(query, title) if self.interaction is not None else _nothing(title)

    def title_vector(self, pair: Tensor) -> Tensor:
        """The titles' own vectors (C, title_dim) within the pairs' (C, P)."""
        return self.interaction.title_vector(pair) if self.interaction is not None else pair

    def match_features(self, query_tokens: Tensor, title_tokens: Tensor) -> Tensor:
        """Features (C, match_dim) of the pairs (C, W); match_dim is 0 without match features."""
        return self.match(query_tokens, title_tokens) if self.match is not None else _nothing(query_tokens)

    def read(self, inputs: Inputs, further: Sequence[str] = ()) -> tuple[TextEncodings, TextReading]:
        """The texts of each candidate, and what they say; `further`: texts beside the title that are encoded too."""
        query, title, to_request = inputs.texts["query"], inputs.texts["title"], inputs.candidate_request
        query_index = query.rows[to_request]
        tokens = query.tokens[query_index], title.tokens[title.rows]
        queries = self.encode(query.tokens)[query_index]
        titles = (self.encode(title.tokens) if title.encoded is None else title.encoded)[title.rows]
        pair = self.pair(queries, titles)  # (C, P)
        match = self.match_features(*tokens)
        others = {name: self._further(queries, inputs.texts[name]) for name in further}
        reading = TextReading(self(pair, match), match, pair, self.title_vector(pair), others)
        return TextEncodings(*tokens, queries, titles), reading

    def _further(self, queries: Tensor, texts: Texts) -> Tensor:
        """What a tower reads of the queries (C, ...) and other texts of the candidates."""
        assert self.interaction is not None
        return self.interaction.features(self.pair(queries, self.encode(texts.tokens)[texts.rows]))

    def swap_titles(self, inputs: Inputs, encodings: TextEncodings, share: float) -> SwappedTitles:
        """A share of the candidates, drawn at random, each with the title of the row half a batch away."""
        count = inputs.candidate_weight.shape[0]
        order = (torch.arange if share >= 1 else torch.randperm)(count, device=inputs.candidate_weight.device)
        rows = order[: max(round(share * count), 1)]
        other = _rows_of_other_requests(inputs.candidate_weight)[rows]
        query_of = inputs.texts["query"].rows[inputs.candidate_request]
        foreign = (query_of[rows] != query_of[other]) & (inputs.candidate_weight[rows] > 0)
        match = self.match_features(encodings.query_tokens[rows], encodings.title_tokens[other])
        pair = self.pair(encodings.query[rows], encodings.title[other])
        return SwappedTitles(rows, pair, match, foreign)

    def forward(self, pair: Tensor, match: Tensor) -> Relevance:
        """The levels of pairs.

        Args:
            pair: (C, P) float, vectors of `pair`.
            match: (C, match_dim) float, features of the same pairs.

        Returns:
            (C, hidden[-1]) and (C, K) float.
        """
        text = self.interaction.features(pair) if self.interaction is not None else pair
        return self.tower(torch.cat([text, match], dim=1))


def _nothing(rows: Tensor) -> Tensor:
    return torch.zeros(rows.shape[0], 0, device=rows.device)


def _rows_of_other_requests(candidate_weight: Tensor) -> Tensor:
    """For each row the row half a batch away: with many requests a batch, another request's title."""
    count = (candidate_weight > 0).sum().clamp(min=1)  # stays a tensor: the host need not wait for it
    return (torch.arange(candidate_weight.shape[0], device=candidate_weight.device) + count // 2) % count
