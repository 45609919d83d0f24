"""What the towers read of a batch, and its looked-up embeddings row by row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torchrec import JaggedTensor


class SearchInputs(Protocol):
    """What PRECTR reads of a batch: R requests, C candidates, K levels, L and M events; shapes as in the comments."""

    request_weight: Tensor  # (R,) 0 for padding
    user_events: Tensor  # (R,)
    user_query_events: Tensor  # (R,)
    query_events: Tensor  # (R,)
    user_shown: Tensor  # (R, K + 1)
    user_clicked: Tensor  # (R, K + 1)
    user_examined: Tensor  # (R, K + 1)
    query_shown: Tensor  # (R, K + 1)
    query_clicked: Tensor  # (R, K + 1)
    query_examined: Tensor  # (R, K + 1)
    group_shown: Tensor  # (R, K + 1)
    group_clicked: Tensor  # (R, K + 1)
    group_examined: Tensor  # (R, K + 1)
    history_lengths: Tensor  # (R,)
    history_level: Tensor  # (R, L)
    history_click: Tensor  # (R, L)
    history_position: Tensor  # (R, L)
    history_age: Tensor  # (R, L)
    history_title_tokens: Tensor  # (T', W)
    history_title_index: Tensor  # (R, L)
    peer_lengths: Tensor  # (R,)
    peer_level: Tensor  # (R, M)
    peer_click: Tensor  # (R, M)
    peer_position: Tensor  # (R, M)
    peer_age: Tensor  # (R, M)
    candidate_request: Tensor  # (C,)
    candidate_weight: Tensor  # (C,) 0 for padding
    position: Tensor  # (C,) 0: hold at the reference
    relevance: Tensor  # (C,) grade, NaN where missing
    level: Tensor  # (C,) 0: missing
    item_shown: Tensor  # (C,)
    item_clicked: Tensor  # (C,)
    item_examined: Tensor  # (C,)
    query_tokens: Tensor  # (Q, W)
    title_tokens: Tensor  # (T, W)
    query_index: Tensor  # (R,)
    title_index: Tensor  # (C,)


class LookedUp:
    """Embeddings by request, by candidate and by event, from what TorchRec looked up.

    Args:
        batch: tells which candidate belongs where.
        sequences: jagged vectors of stride R by feature.
        bags: (C, dim) vectors by feature.
        request_features, candidate_features: names to unpack.
    """

    def __init__(
        self, batch: SearchInputs, sequences: dict[str, JaggedTensor], bags: dict[str, Tensor], request_features: Iterable[str],
        candidate_features: Iterable[str],
    ) -> None:  # fmt: skip
        R, C = batch.request_weight.shape[0], batch.candidate_weight.shape[0]
        self._sequences, self._candidates = sequences, C
        self.request = {name: sequences[name].to_padded_dense(1).view(R, -1).float() for name in request_features}
        self.candidate: dict[str, Tensor] = {}
        for name in candidate_features:
            rows = bags[name] if name in bags else sequences[name].values()
            self.candidate[name] = nn.functional.pad(rows.float(), (0, 0, 0, C - rows.shape[0]))

    def rows(self, names: Iterable[str], to_request: Tensor) -> Tensor:
        """(C, sum of widths) the named features of each candidate, those of its request among them."""
        parts = [self.candidate[n] if n in self.candidate else self.request[n][to_request] for n in names]
        return torch.cat(parts, dim=1) if parts else torch.zeros(self._candidates, 0, device=to_request.device)

    def events(self, names: Iterable[str], length: int) -> Tensor | None:
        """(R, length, sum of widths) of sequence features; None without any."""
        parts = [self._sequences[name].to_padded_dense(length).float() for name in names]
        return torch.cat(parts, dim=2) if parts else None
