"""Mixed effects: a logistic regression whose rows for users, queries, groups and items have Gaussian priors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..declared_effects import DeclaredEffects
from ..gaussian_effects import (
    GaussianEffect,
    GaussianRows,
    GaussianTitles,
    effects_posterior,
    expected_log_probability,
    expected_probability,
)
from ..inputs import Inputs, Widths
from ..mixture import LabelProbability, grade_distributions
from ..parts.base import Given, Part, ReportedPart
from ..parts.declared import Numbers, Vectors
from ..parts.position import Examination
from ..text.match import TextMatch
from ..text.relevance import TextEncodings, TextReading, TextRelevance
from .base import Predictions, RankingModel, WordTaste
from .coefficients import COUNTED, OCCURRENCES, SUFFIX, coefficients, meanings, start_sds, valid_dims

TASTE = "_taste"
"""One whose name ends so, behind an attribute of the item, has rows that are vectors of the item."""
SUMS = {f"{who}{SUFFIX}": f"{who}_sums" for who in ("user", "query")}
"""What coefficients are inferred from that are no rows."""
INPUTS = "inputs_of_effects"
"""What is reported of x."""
MEANS, SEEN = "logit_of_means", "examination"
"""What is reported of the logit at the means of all rows, and of how likely the logged position was to be looked at."""


class SwappedLevels(NamedTuple):
    """What the relevance side says of candidates under titles of other requests."""

    log_pi: Tensor
    """(C, K) float, log probabilities of the levels."""
    foreign: Tensor
    """(C,) bool: the query is truly another one, the row real."""


@dataclass
class MixedFindings:
    """What `MixedEffects` finds on its way to a score."""

    model: MixedEffects
    """Whose findings they are."""
    inputs: Inputs
    """Of what."""
    divergence: Tensor
    """(C,) each candidate's share of the divergence of the rows from their priors."""
    x: Tensor
    """(C, 2 + n + rank) what coefficients are multiplied with: one, the grade from the middle of the grades, the n coordinates of
    declared columns, the item's vector."""
    by_effect: dict[str, Tensor]
    """(C,) by feature, what the mean of its row adds to the logit."""
    logit: Tensor
    """(C,) at the means of all effects, the position at its reference."""
    examination: Tensor
    """(C,) of the logged position."""
    encodings: TextEncodings | None
    """The texts of each candidate; None without a relevance side."""
    text: TextReading
    """The relevance side's own word, before any known grade."""

    def swapped(self) -> SwappedLevels:
        """All candidates, each with a title of another request.

        Raises:
            ValueError: the ranker has no relevance side.
        """
        relevance = self.model.relevance
        if relevance is None or self.encodings is None:
            raise ValueError("a ranker without a relevance side knows no level of a swapped title")
        drawn = relevance.swap_titles(self.inputs, self.encodings, share=1.0)
        return SwappedLevels(relevance(drawn.pair, drawn.match).log_pi, drawn.foreign)


class MixedEffects(RankingModel):
    r"""The click logit from the grade, and from rows of coefficients with a prior.

    Of a candidate, let :math:`g` be the visible grade, else the mean of the predicted levels, else that of the relevance side's
    levels, through which no gradient of the click goes, or without such a side the middle of the grades. Let :math:`d` be the
    coordinates of the log's own columns (`DeclaredEffects`), :math:`v` the vector of the title (`GaussianTitles`) and those of
    attributes, summed, and :math:`x = [1; g; d; v]` with :math:`g` from the middle of the grades. With a row :math:`b_n` for each
    feature :math:`n` of effects, such as user, query, group and item, which has a coefficient for all of :math:`x`, for all but
    :math:`v`, or for one or two elements, a function :math:`f` that is linear between knots, what declared columns and other
    features are worth to all, :math:`h`, and the examination :math:`\epsilon_p` of the position :math:`p` that was logged,

    .. math:: z = f(g) + h + \sum_n b_n \cdot x, \quad P(y = 1 | x, p) = \epsilon_p \, \sigma(z)

    (generalised linear mixed models of search: GLMix, KDD 2016). The user's row holds an offset, how much more than others this
    user wants of relevance, and a taste. Rows, those of vectors too, are Gaussian (`GaussianEffect`), and so is taken the logit:
    what is learned from is its expected log likelihood, and what is predicted the expected probability. Of the past it reads sums
    alone, and only where what they infer of users or queries replaces rows; see `effects_posterior`.

    Args:
        effects: feature -> coefficients of a row.
        tastes: features that are vectors of the item, rows of `GaussianEffect` of 2 `rank` numbers each.
        rank: width of v.
        level_grades: (K,) the grade that stands for each level.
        grade_range: lowest and highest grade.
        position: examination by position; None: the position has no part.
        relevance: predicts levels from the texts; None: there is no such side.
        title: vectors of titles, of width `rank`; None: titles have none.
        taste_sd: of the prior of tastes, the coefficients behind offset and slope. It stays: estimated it falls to nothing, since
            vectors and tastes, both unknown at first, explain nothing of each other.
        offsets: other features, of requests and candidates: what the sum of such a vector adds to the logit is its worth to all.
        declared: the log's own numbers and vectors; None: there are none.
        posterior: feature -> coefficients, of effects that are inferred from sums over past events in place of rows: of the
            user's own (`user_effect`), or of others' under the query (`query_effect`). Who has no past has none.

    Example::

        effects = {"user_effect": 3, "item_effect": 2}
        model = MixedEffects(effects, ["brand_id_taste"], rank=1, level_grades=[1.0, 3.0], grade_range=(1.0, 3.0))
        candidate = {
            "item_effect": torch.zeros(2, 4), "brand_id_taste": torch.randn(2, 2),
            "item_trained": torch.ones(2, 1), "brand_id_trained": torch.ones(2, 1),
            "relevance": torch.tensor([2.5, torch.nan]), "predicted": torch.zeros(2, 2), "position": torch.tensor([1, 2]),
        }
        request = {"user_effect": torch.zeros(1, 6), "user_trained": torch.ones(1, 1)}
        inputs = Inputs(request, candidate, {}, {}, torch.ones(1), torch.tensor([0, 0]), torch.ones(2))
        predictions = model(inputs)
        assert predictions.own.divergence.shape == predictions.ranking["click"].logit.shape == (2,)
    """

    offsets = ("by_grade",)

    def __init__(
        self,
        effects: Mapping[str, int],
        tastes: Sequence[str],
        *,
        rank: int,
        level_grades: Sequence[float],
        grade_range: tuple[float, float],
        position: Examination | None = None,
        relevance: TextRelevance | None = None,
        title: GaussianTitles | None = None,
        offsets: Widths | None = None,
        declared: DeclaredEffects | None = None,
        posterior: Mapping[str, int] | None = None,
        taste_sd: float = 0.2,
    ) -> None:
        super().__init__()
        K = len(level_grades)
        self.relevance, self.title, self.declared = relevance, title, declared
        self.worth = offsets or Widths({}, {}, {})
        self.rank, self.position = rank, position
        self.posterior = dict(posterior or {})
        dims = {**effects, **self.posterior}
        self.num_coefficients = 2 + (declared.num_coordinates if declared is not None else 0) + rank
        fixed = {name: max(dims[name] - self.num_coefficients + rank, 0) for name in OCCURRENCES if name in dims}
        self.effects = nn.ModuleDict(
            {
                name: GaussianEffect(dims[name], sd=start_sds(dims[name] - taste), fixed=taste, fixed_sd=taste_sd)
                for name, taste in fixed.items()
            }
        )
        self.tastes = nn.ModuleDict({name: GaussianEffect(rank, fixed=rank) for name in tastes})
        self.reported = self._reported()
        self.level_grades: Tensor
        self.knots: Tensor
        self.register_buffer("level_grades", torch.tensor(level_grades), persistent=False)
        self.register_buffer("knots", torch.linspace(*grade_range, K), persistent=False)
        self.by_grade = nn.Parameter(torch.linspace(-2.0, -0.5, K))

    def _reported(self) -> dict[str, ReportedPart]:
        found = {
            INPUTS: ReportedPart("what effects are multiplied with", width=self.num_coefficients, where="predictions"),
            MEANS: ReportedPart("the click logit at the means of all effects", where="predictions"),
            SEEN: ReportedPart("how likely the logged position was to be looked at", where="predictions"),
        }
        for name in self.effects:
            whose = COUNTED[name.removesuffix(SUFFIX)]
            found[name] = ReportedPart(f"what the effects of the {whose} add to the click logit", signed=True)
        for name, dim in self.posterior.items():
            whose = COUNTED[name.removesuffix(SUFFIX)]
            by_whom = "the past events of others" if whose == "query" else "past events"
            for slope, what in self._slopes(name, dim).items():
                meaning = f"what {what} more is worth to the {whose}, in logits, beside what it is to all; from {by_whom}"
                found[slope] = ReportedPart(meaning, signed=True)
                found[f"{slope}_sd"] = ReportedPart(f"the standard deviation of {slope}")
        return found

    @classmethod
    def build(cls, given: Given, **settings: Any) -> MixedEffects:
        """As of `RankingModel`: `parts`, of which `numbers` and `vectors` are read; `position_bias` and `position_count`;
        `relevance`, whether there is a relevance side;
        `taste`, the width of titles' vectors, and `taste_share`, of the texts that a word has to be in to have one; and
        `posterior`, coefficients of `user` or `query`.

        Raises:
            ValueError: rows or vectors have widths that do not fit together, or there are rows of what is not counted.
        """
        candidate, request = given.widths.candidate, given.widths.request
        looked_up = {name: width for name, width in (request | candidate).items() if name.endswith(SUFFIX)}
        tastes = {name: width // 2 for name, width in candidate.items() if name.endswith(TASTE)}
        rank = settings["taste"] or max(tastes.values(), default=0)
        if wrong := {name: 2 * width for name, width in tastes.items() if width != rank}:
            raise ValueError(f"vectors of items are {2 * rank} wide, twice model.taste or as the widest table; got {wrong}")
        declared = _declared(given, settings.get("parts", {}))
        inferred = {f"{who}{SUFFIX}": dim for who, dim in settings["posterior"].items()}
        if both := looked_up.keys() & inferred.keys():
            raise ValueError(f"{min(both)} has rows and is inferred too: take the feature, or its model.posterior, out")
        valid = valid_dims(declared.num_coordinates if declared is not None else 0, rank)
        dims = {name: coefficients(name, width, valid) for name, width in looked_up.items()}
        if declared is not None and rank and dims.get(user := f"user{SUFFIX}") == 2 + declared.num_coordinates > 2:
            wider = 2 * (2 + declared.num_coordinates + rank)
            wider += -wider % 4
            raise ValueError(f"a row of {user} has no room for the {rank} coefficients of taste: make it {wider} wide")
        for name, dim in inferred.items():
            if dim not in valid:
                raise ValueError(f"posterior.{name.removesuffix(SUFFIX)}: {dim} coefficients; valid: {meanings(valid)}")
        relevance = given.relevance() if settings["relevance"] else None
        match = relevance.match if relevance is not None else None
        words = match or given.match() if settings["taste"] else None
        return cls(
            dims,
            list(tastes),
            rank=rank,
            level_grades=given.level_grades,
            grade_range=given.grade_range,
            position=Examination(settings["position_count"]) if settings["position_bias"] else None,
            relevance=relevance,
            title=_frequent_words(given, words, rank, settings["taste_share"]) if words is not None else None,
            offsets=Widths(_others(request, looked_up, tastes), _others(candidate, looked_up, tastes), {}),
            declared=declared,
            posterior=inferred,
            taste_sd=settings["taste_sd"],
        )

    def text_side(self) -> TextRelevance | None:
        """As of `RankingModel`."""
        return self.relevance

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """As of `RankingModel`."""
        rows = [*(self.title.parameters() if self.title is not None else [])]
        rows += [self.declared.weight] if self.declared is not None else []
        relevance = self.relevance.groups() if self.relevance is not None else {}
        return {**relevance, "rows": rows}

    @torch.no_grad()
    def start_from(self, examination: Sequence[float], candidates: int = 1) -> None:
        """As of `RankingModel`: the examination of positions starts from the estimate."""
        for module in (self.title, self.declared):
            if module is not None:
                module.candidates.fill_(candidates)
        if self.position is not None:
            self.position.start_from(examination)

    def forward(self, inputs: Inputs) -> Predictions:
        """Scores every candidate."""
        encodings, text = None, TextReading.of_nothing(inputs.candidate_weight)
        if self.relevance is not None:
            encodings, text = self.relevance.read(inputs)
        to_all, x = self._read(inputs, text)
        added: dict[str, Tensor] = {}
        slopes: dict[str, Tensor] = {}
        divergence, variance, total = x.divergence, torch.zeros_like(to_all), torch.zeros_like(x.mean)
        for name in self.effects:
            if name in self.posterior:
                mean, spread = self._inferred(name, inputs, x, slopes)
            else:
                b = self.effects[name](inputs.rows([name]))
                mean, spread = b.mean, _first(b.variance, x.mean.square() + x.variance)
                divergence = divergence + _share(b.divergence, inputs, OCCURRENCES[name])
            added[name] = _first(mean, x.mean)
            variance = variance + spread
            total = total + functional.pad(mean, (0, total.shape[1] - mean.shape[1]))
        z = to_all + sum(added.values())
        variance = variance + (total.square() * x.variance).sum(1)
        seen = torch.ones_like(z) if self.position is None else self.position.examination(inputs.candidate["position"])
        if self.training:
            ranking, logged = (expected_log_probability(z, variance, at) for at in (None, partial(self._at, inputs)))
        else:
            ranking = expected_probability(z, variance)
            logged = self._at(inputs, ranking)
        findings = MixedFindings(self, inputs, divergence, x.mean, added, z, seen, encodings, text)
        found = {INPUTS: x.mean, MEANS: z, SEEN: seen, **added, **slopes}
        reported = found if self.reports_parts and not self.training else {}
        return Predictions({"click": ranking}, {"click": logged}, reported, findings)

    def _at(self, inputs: Inputs, click: LabelProbability) -> LabelProbability:
        """At the logged positions."""
        return click if self.position is None else self.position(click, inputs.candidate["position"])

    def word_taste(self, inputs: Inputs) -> WordTaste | None:
        """As of `RankingModel`; of a ranker without vectors of titles, or whose users have no taste, nothing."""
        name = f"user{SUFFIX}"
        if self.title is None or name not in self.effects:
            return None
        if name in self.posterior:
            user = effects_posterior(inputs.request[SUMS[name]], self.variance(name)).mean
        else:
            user = self.effects[name](inputs.request[name]).mean
        if user.shape[1] < self.num_coefficients:
            return None
        tokens, vectors = self.title.words()
        return WordTaste(tokens, user[:, -self.rank :] @ vectors.T)

    def variance(self, effect: str) -> Tensor:
        """(dim,) of the prior of a feature's rows."""
        return cast(GaussianEffect, self.effects[effect]).prior_sd(self.knots).detach().square()

    def _inferred(self, name: str, inputs: Inputs, x: GaussianRows, slopes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(C, dim) coefficients from past events, and (C,) the variance that they give the logit; what is to be reported of their
        slope goes into `slopes`, (C,) each."""
        found = effects_posterior(inputs.request[SUMS[name]], self.variance(name))
        mean, covariance = (part[inputs.candidate_request] for part in found)
        by, also = x.mean[:, : mean.shape[1]], x.variance[:, : mean.shape[1]]
        spread = torch.einsum("cd,cde,ce->c", by, covariance, by) + (covariance.diagonal(dim1=1, dim2=2) * also).sum(1)
        for place, slope in enumerate(self._slopes(name, self.posterior[name]), start=1):
            slopes[slope], slopes[f"{slope}_sd"] = mean[:, place], covariance[:, place, place].sqrt()
        return mean, spread

    def _worth(self, inputs: Inputs) -> Tensor:
        """(C,) of features that are no rows: the sum of each candidate's, and of its request's."""
        worth = torch.zeros_like(inputs.candidate_weight)
        for name in self.worth.candidate:
            worth = worth + inputs.candidate[name].sum(1)
        for name in self.worth.request:
            worth = worth + inputs.request[name].sum(1)[inputs.candidate_request]
        return worth

    def _slopes(self, name: str, dim: int) -> dict[str, str]:
        """Of a feature with some coefficients that are inferred, those behind the offset that mean something: what they are
        reported as, and what they are of."""
        who, numbers = name.removesuffix(SUFFIX), self.declared.names if self.declared is not None else []
        found = {f"{who}_slope": "a grade"} | {f"{who}_{number}_slope": f"a deviation of {number}" for number in numbers}
        return dict(list(found.items())[: dim - 1])

    def _read(self, inputs: Inputs, text: TextReading) -> tuple[Tensor, GaussianRows]:
        """(C,) f(g) + h, and x, of which the vector has a variance, and a share of the divergence of what it is made of."""
        given, predicted = inputs.candidate["relevance"], inputs.candidate["predicted"]
        middle = (self.knots[0] + self.knots[-1]) / 2
        own = middle if self.relevance is None else text.relevance.log_pi.detach().exp() @ self.level_grades
        expected = torch.where(predicted.sum(1) > 0, predicted @ self.level_grades, own)
        grade = torch.where(given.isnan(), expected, given)
        to_all = grade_distributions(grade, self.knots) @ self.by_grade + self._worth(inputs)
        x = torch.stack([torch.ones_like(grade), grade - middle], dim=1)
        divergence = torch.zeros_like(grade)
        if self.declared is not None:
            own = self.declared(inputs, text)
            to_all, x = to_all + own.to_all, torch.cat([x, own.coordinates], dim=1)
            divergence = divergence + own.divergence
        mean, variance = x.new_zeros(len(x), self.rank), x.new_zeros(len(x), self.rank)
        for name, taste in self.tastes.items():
            rows = taste(inputs.candidate[name])
            mean, variance = mean + rows.mean, variance + rows.variance
            divergence = divergence + _share(rows.divergence, inputs, f"{name.removesuffix(TASTE)}_trained")
        if self.title is not None:
            rows = GaussianRows(*(part[inputs.texts["title"].rows] for part in self.title(inputs.texts["title"].tokens)))
            mean, variance, divergence = mean + rows.mean, variance + rows.variance, divergence + rows.divergence
        return to_all, GaussianRows(torch.cat([x, mean], dim=1), torch.cat([torch.zeros_like(x), variance], dim=1), divergence)


def _first(coefficients: Tensor, x: Tensor) -> Tensor:
    """(C,) the product with as many of the first columns of x as there are coefficients."""
    return (coefficients * x[:, : coefficients.shape[1]]).sum(1)


def _share(diverged: Tensor, inputs: Inputs, occurrences: str) -> Tensor:
    """(C,) of the divergence of the rows of candidates, what each occurrence of a row bears."""
    return diverged / inputs.rows([occurrences]).squeeze(1).clamp(min=1)


def _frequent_words(given: Given, words: TextMatch, dim: int, share: float) -> GaussianTitles:
    """Vectors of titles by the words that at least a share of the texts contains: of others, clicks would tell little."""
    frequent = (words.idf <= -math.log(share)).nonzero().flatten().tolist()
    return GaussianTitles(given.vocab_size, dim, [word for word in frequent if word not in given.special_tokens])


def _declared(given: Given, builders: Mapping[str, Callable[[Given], Part | None]]) -> DeclaredEffects | None:
    """Of the parts that are asked for and have something to say."""
    parts = {name: part for name, build in builders.items() if (part := build(given)) is not None}
    numbers, vectors = parts.get("numbers"), parts.get("vectors")
    return DeclaredEffects(cast(Numbers | None, numbers), given.numbers, cast(Vectors | None, vectors)) if parts else None


def _others(widths: Mapping[str, int], *known: Mapping[str, int]) -> dict[str, int]:
    """Features that are none of those that are known."""
    return {name: width for name, width in widths.items() if not any(name in some for some in known)}
