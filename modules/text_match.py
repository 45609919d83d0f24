"""Hand-made features of how the words of a query and of a title meet."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TextMatch(nn.Module):
    r"""Token-level match of query and title, weighted by how rare a token is.

    With the query's tokens :math:`q_i`, the title's :math:`t_j`, :math:`m_{ij} = [q_i = t_j]` and inverse document frequency
    :math:`w`, the features are coverages such as :math:`\sum_i w(q_i) \max_j m_{ij} / \sum_i w(q_i)`, the same for
    neighbouring pairs of tokens and for numbers, the fate of the query's last and rarest token, and lengths.

    Args:
        idf: (V,) float, inverse document frequency by token id.
        is_number: (V,) bool, tokens that are digits.
        special_tokens: ids that never count as words; 0 is padding.
    """

    num_features = 14
    idf: Tensor
    is_word: Tensor
    is_number: Tensor

    def __init__(self, idf: Tensor, is_number: Tensor, special_tokens: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
        super().__init__()
        weight = idf.clone().float()
        is_word = torch.ones_like(is_number)
        is_word[list(special_tokens)] = False
        self.register_buffer("idf", weight * is_word)
        self.register_buffer("is_word", is_word)
        self.register_buffer("is_number", is_number & is_word)

    def forward(self, query: Tensor, title: Tensor) -> Tensor:
        """Args: query: (C, W_q) int64, title: (C, W_t) int64. Returns: (C, 14) float32, finite for empty texts too."""
        query, title = query[:, : _longest(query)], title[:, : _longest(title)]
        query_word, title_word = self.is_word[query], self.is_word[title]  # (C, W)
        match = (query.unsqueeze(2) == title.unsqueeze(1)) & query_word.unsqueeze(2)  # (C, W_q, W_t)
        hit = match.any(2)  # (C, W_q)
        query_weight, title_weight = self.idf[query], self.idf[title]
        count = query_word.sum(1).float()
        pair = query_word[:, :-1] & query_word[:, 1:]
        pair_hit = (match[:, :-1, :-1] & match[:, 1:, 1:]).any(2) if title.shape[1] > 1 else torch.zeros_like(pair)
        number = self.is_number[query]
        missed = query_weight * ~hit
        rank = torch.arange(query.shape[1], device=query.device)
        last = (rank * query_word).argmax(1, keepdim=True)
        rarest = query_weight.argmax(1, keepdim=True)
        at = torch.arange(title.shape[1], device=title.device).expand_as(title)
        first = torch.where(match.any(1), at, title.shape[1]).amin(1).float()
        title_length = (title != 0).sum(1).clamp(min=1).float()  # of its own, so that no other text of the batch counts
        features = [
            _share((query_weight * hit).sum(1), query_weight.sum(1)),
            _share(hit.sum(1).float(), count),
            _share((title_weight * match.any(1)).sum(1), title_weight.sum(1)),
            _share((pair & pair_hit).sum(1).float(), pair.sum(1).float()),
            _share((number & hit).sum(1).float(), number.sum(1).float()),
            number.any(1).float(),
            (number & ~hit).any(1).float(),
            hit.gather(1, last).squeeze(1).float(),
            hit.gather(1, rarest).squeeze(1).float(),
            (hit == query_word).all(1).float() * (count > 0),
            missed.amax(1) / 10,
            first.clamp(max=title_length) / title_length,
            count.log1p(),
            title_word.sum(1).float().log1p(),
        ]
        return torch.stack(features, dim=1)


def _longest(tokens: Tensor) -> int:
    """Columns in use."""
    return max(int((tokens != 0).sum(1).max()), 2) if tokens.shape[0] else 2


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp(min=1e-6)
