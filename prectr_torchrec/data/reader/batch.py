"""The batch that everything downstream of the reader works on."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from prectr_torchrec.modules.losses.base import Label


@dataclass
class SearchBatch(Pipelineable):
    """R requests with C candidates between them; both are constant over batches, padding has weight zero.

    Letters: R requests, C candidates, K levels, Q distinct queries, T distinct titles, W tokens, L and M events.
    Padding requests are empty rows at the end; padding candidates come last, belong to request R - 1 and have weight zero.
    Padded events are zero with level 0; `history_lengths` and `peer_lengths` say how many are real.
    What the model does not read is not read from the samples: counters are zero then, and events and texts have no columns.
    """

    request_features: KeyedJaggedTensor
    """Stride R: table rows of request-level ids and of the `history_*`, `peer_*` and `candidate_*` sequences."""
    candidate_features: KeyedJaggedTensor
    """Stride C: table rows of candidate-level bags; padding rows have length zero."""
    request_id: Tensor
    """(R,) int64; -1 for padding."""
    request_weight: Tensor
    """(R,) float32, 1 or 0."""
    user_id: Tensor
    """(R,) int64, raw id."""
    user_events: Tensor
    """(R,) float32: the user's strictly past impressions."""
    user_query_events: Tensor
    """(R,) float32."""
    query_events: Tensor
    """(R,) float32: other users' strictly past impressions under the query."""
    user_shown: Tensor
    """(R, K + 1) float32, index 0: without a grade."""
    user_clicked: Tensor
    """(R, K + 1) float32."""
    query_shown: Tensor
    """(R, K + 1) float32, own events left out."""
    query_clicked: Tensor
    """(R, K + 1) float32."""
    user_examined: Tensor
    """(R, K + 1) float32: `user_shown`, each event weighted by the examination of its position. Zero, as the other
    `*_examined` and `group_*` are, unless preference of own or peers or the statistics of the group are on."""
    query_examined: Tensor
    """(R, K + 1) float32."""
    group_shown: Tensor
    """(R, K + 1) float32: events under the queries of the query's group, own ones left out; zero without a group."""
    group_clicked: Tensor
    """(R, K + 1) float32."""
    group_examined: Tensor
    """(R, K + 1) float32."""
    history_lengths: Tensor
    """(R,) int64."""
    history_level: Tensor
    """(R, L) int64 in 0..K, oldest first, left-aligned."""
    history_click: Tensor
    """(R, L) int64, 0 or 1."""
    history_position: Tensor
    """(R, L) int64, 0: not logged."""
    history_age: Tensor
    """(R, L) float32 seconds."""
    history_predicted: Tensor
    """(R, L, K) float32: probabilities of the levels of events without a grade, zero where none is predicted; (R, 0, K) where
    the samples have no predictions."""
    history_title_tokens: Tensor
    """(T2, W_t) int64 token ids of the distinct titles of the history, 0: padding; one row of zeros without taste vectors."""
    history_title_index: Tensor
    """(R, L) int64 into history_title_tokens, 0 where there is no event; (R, 0) without taste vectors."""
    peer_lengths: Tensor
    """(R,) int64; 0 without preference of peers, all other `peer_*` are (R, 0) then."""
    peer_level: Tensor
    """(R, M) int64 in 0..K, oldest first within the group and within the query, left-aligned."""
    peer_click: Tensor
    """(R, M) int64, 0 or 1."""
    peer_position: Tensor
    """(R, M) int64, 0: not logged."""
    peer_in_group: Tensor
    """(R, M) int64, 1: under another query of the query's group; these come first."""
    peer_age: Tensor
    """(R, M) float32 seconds."""
    peer_predicted: Tensor
    """(R, M, K) float32, or (R, 0, K), as `history_predicted`."""
    candidate_request: Tensor
    """(C,) int64: the row of the request that a candidate belongs to."""
    candidate_weight: Tensor
    """(C,) float32, 1 or 0."""
    item_id: Tensor
    """(C,) int64, raw id."""
    position: Tensor
    """(C,) int64, 0: not logged."""
    click: Tensor
    """(C,) float32; 0 where there is no label."""
    click_weight: Tensor
    """(C,) float32: 1 for a real candidate with a click label, else 0."""
    relevance: Tensor
    """(C,) float32 raw grade, NaN where there is none."""
    level: Tensor
    """(C,) int64 in 0..K, 0: no grade."""
    candidate_predicted: Tensor
    """(C, K) float32: probabilities of the levels where there is no grade, zero where none is predicted."""
    item_shown: Tensor
    """(C,) float32: the item's strictly past impressions."""
    item_clicked: Tensor
    """(C,) float32."""
    item_examined: Tensor
    """(C,) float32: `item_shown`, each event weighted by the examination of its position."""
    query_tokens: Tensor
    """(Q, W_q) int64 token ids of the distinct queries, 0: padding."""
    title_tokens: Tensor
    """(T, W_t) int64 token ids of the distinct titles, 0: padding."""
    query_index: Tensor
    """(R,) int64 into query_tokens."""
    title_index: Tensor
    """(C,) int64 into title_tokens."""

    def without_grades(self, rows: Tensor | None = None) -> SearchBatch:
        """As if candidates had no grade, given or predicted, as most have none when a ranker serves; the past keeps its grades.

        Args:
            rows: (C,) bool, whose grade is hidden; None: of all.
        """
        hidden = torch.ones_like(self.level, dtype=torch.bool) if rows is None else rows
        return replace(
            self,
            relevance=self.relevance.masked_fill(hidden, torch.nan),
            level=self.level.masked_fill(hidden, 0),
            candidate_predicted=self.candidate_predicted.masked_fill(hidden.unsqueeze(1), 0.0),
        )

    def labels(self) -> dict[str, Label]:
        """By name; `click`."""
        return {"click": Label(self.click, self.click_weight)}

    def to(self, device: torch.device, non_blocking: bool = False) -> SearchBatch:
        return SearchBatch(*(getattr(self, f.name).to(device=device, non_blocking=non_blocking) for f in fields(self)))

    def record_stream(self, stream: torch.Stream) -> None:
        for f in fields(self):
            getattr(self, f.name).record_stream(stream)

    def pin_memory(self) -> SearchBatch:
        return SearchBatch(*(getattr(self, f.name).pin_memory() for f in fields(self)))
