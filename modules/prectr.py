"""PRECTR: the towers put together over whatever embeddings the caller looked up."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torchrec import JaggedTensor

from .attention import CandidateSlots
from .history import InterestTower
from .mixture import ClickProbability, LevelMixture, known_level_log_probabilities
from .position import PositionBias
from .relevance import TextRelevance
from .statistics import LevelStatistics
from .towers import ClickTower, Relevance


class SearchInputs(Protocol):
    """What PRECTR reads of a batch: R requests, C candidates, K levels, L events; shapes as in the comments."""

    request_weight: Tensor  # (R,) 0 for padding
    user_events: Tensor  # (R,)
    user_query_events: Tensor  # (R,)
    query_events: Tensor  # (R,)
    user_shown: Tensor  # (R, K + 1)
    user_clicked: Tensor  # (R, K + 1)
    query_shown: Tensor  # (R, K + 1)
    query_clicked: Tensor  # (R, K + 1)
    history_lengths: Tensor  # (R,)
    history_level: Tensor  # (R, L)
    history_click: Tensor  # (R, L)
    history_position: Tensor  # (R, L)
    history_age: Tensor  # (R, L)
    candidate_request: Tensor  # (C,)
    candidate_weight: Tensor  # (C,) 0 for padding
    position: Tensor  # (C,) 0: hold at the reference
    relevance: Tensor  # (C,) grade, NaN where missing
    level: Tensor  # (C,) 0: missing
    item_shown: Tensor  # (C,)
    item_clicked: Tensor  # (C,)
    query_tokens: Tensor  # (Q, W)
    title_tokens: Tensor  # (T, W)
    query_index: Tensor  # (R,)
    title_index: Tensor  # (C,)


class SwappedTitles(NamedTuple):
    """Each query judged with a title from elsewhere in the batch."""

    log_pi: Tensor
    """(C, K)."""
    foreign: Tensor
    """(C,) bool: the title was shown under another query."""


class PRECTROutput(NamedTuple):
    click: ClickProbability
    """At the batch's positions."""
    reference_click: ClickProbability
    """With the position held at the reference: what ranks."""
    relevance: Relevance
    """The relevance tower's own word, before any known grade."""
    level_logits: Tensor
    """(C, K) click logits by level, without position."""
    swapped: SwappedTitles | None
    """Where asked for."""


class PRECTR(nn.Module):
    """One probability from relevance levels and click, with the user's own interest.

    It owns no tables: embeddings come in as TorchRec looked them up, from `SearchEmbeddings` or from a model of yours.

    Args:
        num_levels: K.
        request_dims: request-level feature -> width.
        candidate_dims: candidate-level feature (sequence or bag) -> width.
        history: history feature -> the feature it is compared with, `candidate_*` or request-level, of the same width.
        relevance: the text side.
        statistics: whose counters are dense features, of "user", "query", "item".
        mixture: False gives a single click logit (the levels then play no part).
        interest: target attention over the history.
        known_grade: "override": a known grade replaces the predicted distribution and is a feature of the click tower;
            "feature": only the latter; "none": neither.
        grade_range: lowest and highest grade.
    """

    def __init__(
        self,
        *,
        num_levels: int,
        request_dims: dict[str, int],
        candidate_dims: dict[str, int],
        history: dict[str, str],
        relevance: TextRelevance,
        statistics: list[str],
        mixture: bool = True,
        interest: bool = True,
        attention_dim: int = 32,
        attention_heads: int = 2,
        click_tower: list[int],
        cross_layers: int = 0,
        num_positions: int | None = 50,
        known_grade: Literal["override", "feature", "none"] = "override",
        grade_range: tuple[float, float] = (1.0, 3.0),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.request_features, self.candidate_features = list(request_dims), list(candidate_dims)
        self.history_features = dict(history) if interest else {}
        self.known_grade, self.grade_range, self.use_mixture = known_grade, grade_range, mixture
        self.relevance = relevance
        self.mixture = LevelMixture()
        dims = {**request_dims, **candidate_dims}
        in_dim = sum(dims.values()) + relevance.tower.head.in_features + relevance.match_dim + 3

        self.interest: InterestTower | None = None
        if self.history_features:
            item_dim = sum(dims[target] for target in self.history_features.values())
            self.interest = InterestTower(item_dim, num_levels, dim=attention_dim, num_heads=attention_heads)
            in_dim += attention_dim
        self.title = nn.Linear(relevance.text_dim, 32) if relevance.text_dim else None
        in_dim += 32 if self.title is not None else 0
        self.user_statistics = LevelStatistics(num_levels + 1) if "user" in statistics else None
        self.query_statistics = LevelStatistics(num_levels + 1) if "query" in statistics else None
        self.item_statistics = LevelStatistics(1) if "item" in statistics else None
        for module in (self.user_statistics, self.query_statistics, self.item_statistics):
            in_dim += module.num_features if module is not None else 0
        self.level = nn.Embedding(num_levels + 1, 8) if known_grade != "none" else None
        in_dim += 10 if self.level is not None else 0
        self.position = PositionBias(num_positions) if num_positions is not None else None
        self.click_tower = ClickTower(
            in_dim, click_tower, num_levels if mixture else 1, cross_layers=cross_layers, dropout=dropout
        )

    def forward(
        self, batch: SearchInputs, sequences: dict[str, JaggedTensor], bags: dict[str, Tensor], swap_titles: bool = False
    ) -> PRECTROutput:
        """Scores every candidate.

        Args:
            batch: dense inputs.
            sequences: jagged vectors of stride R by feature.
            bags: (C, dim) vectors by feature.
            swap_titles: also judge each query with a title of another request.
        """
        to_request = batch.candidate_request
        query_tokens = batch.query_tokens[batch.query_index[to_request]]
        title_tokens = batch.title_tokens[batch.title_index]
        query = self.relevance.encode(batch.query_tokens)[batch.query_index][to_request]  # (C, D)
        title = self.relevance.encode(batch.title_tokens)[batch.title_index]
        match = self.relevance.match_features(query_tokens, title_tokens)
        relevance = self.relevance(query, title, match)
        swapped = None
        if swap_titles:
            other = _rows_of_other_requests(batch.candidate_weight)
            match = self.relevance.match_features(query_tokens, title_tokens[other])
            foreign = batch.query_index[to_request] != batch.query_index[to_request[other]]
            swapped = SwappedTitles(self.relevance(query, title[other], match).log_pi, foreign & (batch.candidate_weight > 0))

        dense = self._embedded(batch, sequences, bags) + self._dense(batch)
        dense += [relevance.hidden, match]
        if self.title is not None:
            dense.append(self.title(title))
        z = self.click_tower(torch.cat(dense, dim=1))  # (C, K)
        log_pi = self._level_log_probabilities(relevance, batch.level)
        reference = self.mixture(log_pi, z)
        logged = self.mixture(log_pi, z + self.position(batch.position)) if self.position is not None else reference
        return PRECTROutput(logged, reference, relevance, z, swapped)

    def _level_log_probabilities(self, relevance: Relevance, level: Tensor) -> Tensor:
        if not self.use_mixture:
            return relevance.log_pi.new_zeros(level.shape[0], 1)
        if self.known_grade == "override":
            return known_level_log_probabilities(relevance.log_pi, level)
        return relevance.log_pi

    def _embedded(self, batch: SearchInputs, sequences: dict[str, JaggedTensor], bags: dict[str, Tensor]) -> list[Tensor]:
        R, C = batch.request_weight.shape[0], batch.candidate_weight.shape[0]
        by_name = dict(bags)
        for name in self.request_features:
            by_name[name] = sequences[name].to_padded_dense(1).view(R, -1).float()[batch.candidate_request]
        for name in self.candidate_features:
            if name not in bags:
                rows = sequences[name].values().float()
                by_name[name] = nn.functional.pad(rows, (0, 0, 0, C - rows.shape[0]))
        inputs = [by_name[name].float() for name in (*self.request_features, *self.candidate_features)]
        if self.interest is not None:
            candidate = torch.cat([by_name[target] for target in self.history_features.values()], dim=1)
            L = batch.history_level.shape[1]
            events = torch.cat([sequences[name].to_padded_dense(L).float() for name in self.history_features], dim=2)
            slots = CandidateSlots(batch.candidate_request, batch.candidate_weight, R)
            inputs.append(
                self.interest(
                    candidate,
                    slots,
                    events,
                    batch.history_lengths,
                    batch.history_level,
                    batch.history_click,
                    batch.history_position,
                    batch.history_age,
                )
            )
        return inputs

    def _dense(self, batch: SearchInputs) -> list[Tensor]:
        to_request = batch.candidate_request
        counts = torch.stack([batch.user_events, batch.user_query_events, batch.query_events], dim=1)
        dense = [(counts.log1p() / 4)[to_request]]
        if self.user_statistics is not None:
            dense.append(self.user_statistics(batch.user_shown, batch.user_clicked)[to_request])
        if self.query_statistics is not None:
            dense.append(self.query_statistics(batch.query_shown, batch.query_clicked)[to_request])
        if self.item_statistics is not None:
            dense.append(self.item_statistics(batch.item_shown.unsqueeze(1), batch.item_clicked.unsqueeze(1)))
        if self.level is not None:
            low, high = self.grade_range
            missing = batch.relevance.isnan()
            grade = ((batch.relevance - low) / (high - low)).masked_fill(missing, 0.0)
            dense += [self.level(batch.level), grade.unsqueeze(1), missing.float().unsqueeze(1)]
        return dense


def _rows_of_other_requests(candidate_weight: Tensor) -> Tensor:
    """For each row the row half a batch away: with many requests a batch, another request's title."""
    count = max(int((candidate_weight > 0).sum()), 1)
    return (torch.arange(candidate_weight.shape[0], device=candidate_weight.device) + count // 2) % count
