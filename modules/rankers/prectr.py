"""PRECTR: the towers put together over whatever embeddings the caller looked up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchrec import JaggedTensor

from ..inputs import LookedUp, SearchInputs, counters, without_past
from ..mixture import ClickProbability, LevelMixture, known_level_log_probabilities
from ..parts.interest import InterestTower
from ..parts.position import Examination
from ..parts.statistics import LevelStatistics
from ..text.relevance import Relevance, TextRelevance
from .personal import Personal, PersonalSide, PreferenceParts
from .towers import ClickTower

torch.fx.wrap("known_level_log_probabilities")  # it asks how many levels there are


class OtherTexts(NamedTuple):
    """Each candidate with another text: what the relevance tower says of it, and the score that follows."""

    log_pi: Tensor
    """(C, K)."""
    foreign: Tensor
    """(C,) bool: the text is truly another one, the row real; where it is not, the other two say nothing."""
    logit: Tensor
    """(C,) ranking logit if this text were the candidate's, all else equal; no grade is known of it."""


class PersonalEffect(NamedTuple):
    """What a past changes in the click logits by level, through all parts: `z(x) - z(x without it)`, zero where there is none.

    Without a past its counts, counters and events are those of somebody new; the ids, and the item's counters, are the same.
    """

    own: Tensor
    """(C, K) or, without a mixture, (C, 1): of the user's own past."""
    peers: Tensor
    """The same of other users' past under the query and its group."""


class _Text(NamedTuple):
    """What the click tower reads of query and title."""

    hidden: Tensor
    match: Tensor
    title: list[Tensor]


class PRECTROutput(NamedTuple):
    click: ClickProbability
    """At the batch's positions."""
    reference_click: ClickProbability
    """With the position held at the reference: what ranks."""
    relevance: Relevance
    """The relevance tower's own word, before any known grade."""
    log_pi: Tensor
    """(C, K) log probabilities of the levels that the mixture takes, known ones in place; (C, 1) zeros without a mixture."""
    level_logits: Tensor
    """(C, K) click logits by level, without position."""
    personal: Personal
    """The preference parts, each None where it is switched off."""
    swapped: OtherTexts | None
    """Where asked for: with the title of another request."""
    noised: OtherTexts | None
    """Where asked for: with noise on the text side."""
    effect: PersonalEffect | None
    """Where asked for."""

    def mean_over_levels(self, by_level: Tensor) -> Tensor:
        """(C,) the mean of (C, K) or (C, 1) over the candidate's own level distribution, the mixture's."""
        return (self.log_pi.exp() * by_level).sum(1)


class PRECTR(nn.Module):
    """One probability from relevance levels and click, with the user's own interest and preferences.

    It owns no tables: embeddings come in as TorchRec looked them up, from `SearchEmbeddings` or from a model of yours.

    Args:
        num_levels: K.
        request_dims: request-level feature -> width.
        candidate_dims: candidate-level feature (sequence or bag) -> width.
        history: history feature -> the feature it is compared with, `candidate_*` or request-level, of the same width.
        peers: peer feature -> the feature it is compared with.
        relevance: the text side.
        statistics: whose counters are dense features, of "user", "query", "group", "item".
        position_corrected: these expect clicks of what was examined, not of all that was shown; reads `*_examined`.
        preference: which parts of PRECTR-V2 there are; None: none.
        mixture: False gives a single click logit (the levels then play no part).
        interest: target attention over the history.
        known_grade: "override": a known grade replaces the predicted distribution and is a feature of the click tower;
            "feature": only the latter; "none": neither.
        grade_range: lowest and highest grade.
        level_grades: (K,) the grade that stands for each level, for predicted levels; None: evenly over the range.
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
        position_corrected: bool = False,
        peers: dict[str, str] | None = None,
        preference: PreferenceParts | None = None,
        mixture: bool = True,
        interest: bool = True,
        attention_dim: int = 32,
        attention_heads: int = 2,
        click_tower: list[int],
        cross_layers: int = 0,
        num_positions: int | None = 50,
        known_grade: Literal["override", "feature", "none"] = "override",
        grade_range: tuple[float, float] = (1.0, 3.0),
        level_grades: Sequence[float] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.request_features, self.candidate_features = list(request_dims), list(candidate_dims)
        self.history_features = dict(history)
        self.known_grade, self.grade_range, self.use_mixture = known_grade, grade_range, mixture
        self.level_grades: Tensor
        grades = torch.linspace(*grade_range, num_levels) if level_grades is None else torch.tensor(level_grades)
        self.register_buffer("level_grades", grades, persistent=False)
        self.position_corrected = position_corrected
        self.relevance = relevance
        self.mixture = LevelMixture()
        dims = {**request_dims, **candidate_dims}
        in_dim = sum(dims.values()) + relevance.tower.head.in_features + relevance.match_dim + 3

        self.interest: InterestTower | None = None
        if interest and history:
            item_dim = sum(dims[target] for target in history.values())
            self.interest = InterestTower(item_dim, num_levels, dim=attention_dim, num_heads=attention_heads)
            in_dim += attention_dim
        self.title = nn.Linear(relevance.title_dim, 32) if relevance.title_dim else None
        in_dim += 32 if self.title is not None else 0
        counted = {who: LevelStatistics(1 if who == "item" else num_levels + 1) for who in statistics}
        self.statistics = nn.ModuleDict(counted)
        in_dim += sum(module.num_features for module in counted.values())
        self.level = nn.Embedding(num_levels + 1, 8) if known_grade != "none" else None
        in_dim += 10 if self.level is not None else 0
        self.personal = PersonalSide(
            preference or PreferenceParts(),
            dims,
            history,
            peers or {},
            num_levels=num_levels,
            mixture=mixture,
            relevance_dim=relevance.tower.head.in_features,
        )
        in_dim += self.personal.num_features
        self.position = Examination(num_positions) if num_positions is not None else None
        self.click_tower = ClickTower(
            in_dim, click_tower, num_levels if mixture else 1, cross_layers=cross_layers, dropout=dropout
        )

    def start_from(self, examination: Sequence[float]) -> None:
        """Starts what a log tells before training from there.

        Args:
            examination: of positions 1, 2, ... against the first, as in `prepared.json`.
        """
        if self.position is not None:
            self.position.start_from(examination)

    def forward(
        self,
        batch: SearchInputs,
        sequences: dict[str, JaggedTensor],
        bags: dict[str, Tensor],
        swap_titles: float = 0.0,
        noise: Tensor | None = None,
        titles: Tensor | None = None,
        effects: bool = False,
    ) -> PRECTROutput:
        """Scores every candidate.

        Args:
            batch: dense inputs.
            sequences: jagged vectors of stride R by feature.
            bags: (C, dim) vectors by feature.
            swap_titles: share of the candidates, drawn at random, whose query is also judged with a title of another request.
            noise: (C,) also judge each pair with Gaussian noise on its text side, in standard deviations over the batch.
            titles: (T, ...) `relevance.encode` of the title tokens, where the caller kept it.
            effects: also say what the own and the peers' past change; runs the personal side and the click tower twice more.

        Raises:
            ValueError: `effects` in training mode, where dropout would pass for an effect.
        """
        if effects and self.training:
            raise ValueError("effects: PRECTR is in training mode, where dropout would pass for an effect; call eval() first")
        to_request = batch.candidate_request
        query_tokens = batch.query_tokens[batch.query_index[to_request]]
        title_tokens = batch.title_tokens[batch.title_index]
        query = self.relevance.encode(batch.query_tokens)[batch.query_index[to_request]]
        title = (self.relevance.encode(batch.title_tokens) if titles is None else titles)[batch.title_index]
        pair = self.relevance.pair(query, title)  # (C, P)
        match = self.relevance.match_features(query_tokens, title_tokens)
        relevance = self.relevance(pair, match)
        log_pi = self._level_log_probabilities(relevance, batch)

        looked_up = LookedUp(batch, sequences, bags, self.request_features, self.candidate_features)
        title_vector = [self.title(self.relevance.title_vector(pair))] if self.title is not None else []
        text = _Text(relevance.hidden, match, title_vector)
        z, personal = self._click_logits(batch, looked_up, text)

        reference = self.mixture(log_pi, z)
        logged = self.position(reference, batch.position) if self.position is not None else reference
        swapped = self._swapped(batch, query, title, query_tokens, title_tokens, z, swap_titles) if swap_titles > 0 else None
        noised = self._noised(batch, pair, match, noise, z) if noise is not None else None
        effect = self._effect(batch, looked_up, text, z) if effects else None
        return PRECTROutput(logged, reference, relevance, log_pi, z, personal, swapped, noised, effect)

    def _click_logits(self, batch: SearchInputs, looked_up: LookedUp, text: _Text) -> tuple[Tensor, Personal]:
        """(C, K) without position, and the parts in them that are personal."""
        personal = self.personal(batch, looked_up, text.hidden)
        dense = [looked_up.rows((*self.request_features, *self.candidate_features))]
        dense += self._interest(looked_up) + self._dense(batch) + [text.hidden, text.match, personal.features, *text.title]
        return self.click_tower(torch.cat(dense, dim=1)) + personal.shift, personal

    def _effect(self, batch: SearchInputs, looked_up: LookedUp, text: _Text, z: Tensor) -> PersonalEffect:
        others = (without_past(batch, "own"), without_past(batch, "peers"))
        return PersonalEffect(*(z - self._click_logits(other, looked_up.read_with(other), text)[0] for other in others))

    def _level_log_probabilities(self, relevance: Relevance, batch: SearchInputs) -> Tensor:
        if not self.use_mixture:
            return relevance.log_pi.new_zeros(batch.level.shape[0], 1)
        if self.known_grade == "override":
            return known_level_log_probabilities(relevance.log_pi, batch.level, batch.candidate_predicted)
        return relevance.log_pi

    def _swapped(
        self,
        batch: SearchInputs,
        query: Tensor,
        title: Tensor,
        query_tokens: Tensor,
        title_tokens: Tensor,
        z: Tensor,
        share: float,
    ) -> OtherTexts:
        count = z.shape[0]
        order = (torch.arange if share >= 1 else torch.randperm)(count, device=z.device)
        rows = order[: max(round(share * count), 1)]
        other = _rows_of_other_requests(batch.candidate_weight)[rows]
        query_of = batch.query_index[batch.candidate_request]
        foreign = (query_of[rows] != query_of[other]) & (batch.candidate_weight[rows] > 0)
        match = self.relevance.match_features(query_tokens[rows], title_tokens[other])
        drawn = self._other(self.relevance.pair(query[rows], title[other]), match, foreign, z[rows])
        return OtherTexts(*(part.new_zeros(count, *part.shape[1:]).index_copy(0, rows, part) for part in drawn))

    def _noised(self, batch: SearchInputs, pair: Tensor, match: Tensor, noise: Tensor, z: Tensor) -> OtherTexts:
        real = batch.candidate_weight > 0
        pair, match = (_with_noise(text, noise, real) for text in (pair, match))
        return self._other(pair, match, real, z)

    def _other(self, pair: Tensor, match: Tensor, foreign: Tensor, z: Tensor) -> OtherTexts:
        """The text reaches the score through the level distribution alone: the click tower sees the logged candidate."""
        log_pi = self.relevance(pair, match).log_pi
        logit = self.mixture(log_pi, z).logit if self.use_mixture else z.squeeze(1)
        return OtherTexts(log_pi, foreign, logit)

    def _interest(self, looked_up: LookedUp) -> list[Tensor]:
        if self.interest is None:
            return []
        history = looked_up.events("history", self.history_features)
        assert history is not None
        return [self.interest(looked_up.rows(self.history_features.values()), looked_up.slots, history)]

    def _dense(self, batch: SearchInputs) -> list[Tensor]:
        to_request = batch.candidate_request
        counts = torch.stack([batch.user_events, batch.user_query_events, batch.query_events], dim=1)
        dense = [(counts.log1p() / 4)[to_request]]
        for who, module in self.statistics.items():
            shown, clicked, examined = counters(batch, who)
            features = module(shown, clicked, examined if self.position_corrected else shown)
            dense.append(features if who == "item" else features[to_request])
        if self.level is not None:
            low, high = self.grade_range
            missing, predicted = batch.relevance.isnan(), batch.candidate_predicted
            grade = torch.where(missing, predicted @ (self.level_grades - low), batch.relevance - low) / (high - low)
            level = self.level(batch.level) + predicted @ self.level.weight[1:]  # "no grade" marks a predicted one
            dense += [level, grade.unsqueeze(1), missing.float().unsqueeze(1)]
        return dense


def _with_noise(features: Tensor, scale: Tensor, real: Tensor) -> Tensor:
    """Features (C, D) with Gaussian noise of `scale` (C,) standard deviations of theirs over the real rows."""
    if not features.shape[1]:
        return features
    deviation = features.detach()[real].std(0, unbiased=False) if bool(real.any()) else 0.0
    return features + torch.randn_like(features) * deviation * scale.unsqueeze(1)


def _rows_of_other_requests(candidate_weight: Tensor) -> Tensor:
    """For each row the row half a batch away: with many requests a batch, another request's title."""
    count = (candidate_weight > 0).sum().clamp(min=1)  # stays a tensor: the host need not wait for it
    return (torch.arange(candidate_weight.shape[0], device=candidate_weight.device) + count // 2) % count
