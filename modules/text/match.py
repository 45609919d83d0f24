"""Hand-made features of how the words of a query and of a title meet."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TextMatch(nn.Module):
    r"""Token-level match of query and title, weighted by how rare a token is.

    Let :math:`q_i` and :math:`t_j` be the tokens of query and title, :math:`w(\cdot)` the inverse document frequency of a token,
    and :math:`m_{ij}` 1 where :math:`q_i` and :math:`t_j` have one stem, else 0. A query token is met where
    :math:`\max_j m_{ij} = 1`. The 24 features, in their order:

    - 1-7: the weight that is met, as a share of the query's, :math:`\sum_i w(q_i) \max_j m_{ij} / \sum_i w(q_i)`, and as it is;
      the weight that is missed; the heaviest token met, and missed; the lightest met, and missed;
    - 8-10: whether the query's last token is met, its weight, whether its rarest is;
    - 11-13: share of the query's numbers that are met, whether it has any, whether one is missed;
    - 14: share of the query's neighbouring pairs that are neighbours in the title;
    - 15-17: where in the title the first and the last match stand, and how far apart, as shares of its length;
    - 18: the weight of the title that is met, as a share;
    - 19-20: share of the query's tokens that are met, and whether all are;
    - 21-24: logarithms of the tokens met, missed, of the query and of the title.

    They depend on the pair alone, never on the width that the batch is padded to. There is nothing to be learned in them; the
    choice is this project's own.

    Args:
        idf: (V,) float, inverse document frequency by token id, the same for tokens of one stem.
        is_number: (V,) bool, tokens that are digits.
        stem: (V,) int64, the id that stands for all tokens of a stem; None: each token is its own.
        special_tokens: ids that never count as words; 0 is padding.

    Example::

        match = TextMatch(idf=torch.full((50,), 2.0), is_number=torch.zeros(50, dtype=torch.bool))
        query, title = torch.tensor([[7, 8], [7, 8]]), torch.tensor([[9, 7, 8, 0], [9, 8, 0, 0]])
        features = match(query, title)
        assert features.shape == (2, match.num_features)
        assert features[:, 0].tolist() == [1.0, 0.5]  # all of the first query's weight is met, half of the second's
    """

    num_features = 24
    idf: Tensor
    is_word: Tensor
    is_number: Tensor
    stem: Tensor

    def __init__(
        self, idf: Tensor, is_number: Tensor, stem: Tensor | None = None, *, special_tokens: tuple[int, ...] = (0, 1, 2, 3, 4)
    ) -> None:
        super().__init__()
        is_word = torch.ones_like(is_number)
        is_word[list(special_tokens)] = False
        self.register_buffer("idf", idf.float() * is_word)
        self.register_buffer("is_word", is_word)
        self.register_buffer("is_number", is_number & is_word)
        self.register_buffer("stem", torch.arange(len(idf)) if stem is None else stem.clone())

    def forward(self, query: Tensor, title: Tensor) -> Tensor:
        """The features of pairs.

        Args:
            query: (C, W_q) int64 tokens, 0 is padding, on the right.
            title: (C, W_t) int64 tokens, likewise.

        Returns:
            (C, 24) float32, finite for empty texts too.
        """
        query, title = query[:, : _longest(query)], title[:, : _longest(title)]
        query_word, title_word = self.is_word[query], self.is_word[title]  # (C, W)
        same = self.stem[query].unsqueeze(2) == self.stem[title].unsqueeze(1)
        match = same & query_word.unsqueeze(2) & title_word.unsqueeze(1)  # (C, W_q, W_t)
        hit, title_hit = match.any(2), match.any(1)  # (C, W_q), (C, W_t)
        miss = query_word & ~hit
        return torch.stack(
            [
                *self._weights(query, hit, miss),
                *self._ends(query, query_word, hit),
                *self._numbers(query, hit),
                *_pairs(match, query_word),
                *_places(title, title_hit),
                _share((self.idf[title] * title_hit).sum(1), self.idf[title].sum(1)),
                _share(hit.sum(1).float(), query_word.sum(1).float()),
                (hit == query_word).all(1).float() * query_word.any(1),
                hit.sum(1).float().log1p(),
                miss.sum(1).float().log1p(),
                query_word.sum(1).float().log1p(),
                title_word.sum(1).float().log1p(),
            ],
            dim=1,
        )

    def _weights(self, query: Tensor, hit: Tensor, miss: Tensor) -> list[Tensor]:
        """What was met and missed, in inverse document frequency."""
        weight = self.idf[query]
        met, missed = weight * hit, weight * miss
        ceiling = weight.amax(1, keepdim=True)
        return [
            _share(met.sum(1), weight.sum(1)),
            met.sum(1) / 20,
            missed.sum(1) / 20,
            met.amax(1) / 10,
            missed.amax(1) / 10,
            torch.where(hit, weight, ceiling).amin(1) / 10,
            torch.where(miss, weight, ceiling).amin(1) / 10,
        ]

    def _ends(self, query: Tensor, query_word: Tensor, hit: Tensor) -> list[Tensor]:
        """The query's last word, which often names the thing, and its rarest."""
        rank = torch.arange(query.shape[1], device=query.device)
        last = (rank * query_word).argmax(1, keepdim=True)
        rarest = self.idf[query].argmax(1, keepdim=True)
        return [
            hit.gather(1, last).squeeze(1).float(),
            self.idf[query.gather(1, last).squeeze(1)] / 10,
            hit.gather(1, rarest).squeeze(1).float(),
        ]

    def _numbers(self, query: Tensor, hit: Tensor) -> list[Tensor]:
        number = self.is_number[query]
        return [
            _share((number & hit).sum(1).float(), number.sum(1).float()),
            number.any(1).float(),
            (number & ~hit).any(1).float(),
        ]


def _pairs(match: Tensor, query_word: Tensor) -> list[Tensor]:
    """Neighbouring tokens of the query that are neighbours in the title."""
    pair = query_word[:, :-1] & query_word[:, 1:]
    hit = (match[:, :-1, :-1] & match[:, 1:, 1:]).any(2)
    return [_share((pair & hit).sum(1).float(), pair.sum(1).float())]


def _places(title: Tensor, title_hit: Tensor) -> list[Tensor]:
    """Where in the title the first and the last match stand, and how far apart, as shares of its own length; 1, 0, 0 for none."""
    at = torch.arange(title.shape[1], device=title.device).expand_as(title)
    length = (title != 0).sum(1).clamp(min=1)
    first = torch.where(title_hit, at, title.shape[1]).amin(1).minimum(length)
    last = torch.where(title_hit, at, 0).amax(1)
    return [first / length, last / length, (last - first).clamp(min=0) / length]


@torch.fx.wrap
def _longest(tokens: Tensor) -> int:
    """Columns in use, two at least, so that there are neighbours to look at; on a GPU all, which the host need not wait for."""
    if tokens.device.type != "cpu":
        return max(tokens.shape[1], 2)
    return max(int((tokens != 0).sum(1).max()), 2) if tokens.shape[0] else 2


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp(min=1e-6)
