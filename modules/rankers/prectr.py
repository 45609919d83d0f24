"""PRECTR: one probability from relevance levels and click, put together from parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..inputs import Inputs, Whose
from ..mixture import LevelMixture, known_level_log_probabilities, label_chain
from ..parts.base import Given, Part, ReportedPart
from ..parts.position import Examination
from ..text.relevance import TextEncodings, TextReading, TextRelevance
from .base import Predictions
from .parted import PartedRanker
from .towers import ClickTower

_PASTS: dict[Whose, str] = {"own": "the user's own past", "peers": "other users' past under the query and its group"}


class OtherTexts(NamedTuple):
    """Each candidate with another text: what the relevance tower says of it, and the score that follows."""

    log_pi: Tensor
    """(C, K) float, log probabilities of the levels."""
    foreign: Tensor
    """(C,) bool: the text is truly another one, the row real; where it is not, the other two say nothing."""
    logit: Tensor
    """(C,) float, ranking logit if this text were the candidate's, all else equal; no grade is known of it."""


@dataclass
class PRECTRFindings:
    """What PRECTR finds on its way to a score, for losses and reports of its own; what costs more is computed when asked for."""

    model: PRECTR
    """Whose findings they are."""
    inputs: Inputs
    """Of what."""
    encodings: TextEncodings
    """The texts of each candidate."""
    text: TextReading
    """The relevance side's own word, before any known grade."""
    log_pi: Tensor
    """(C, K) log probabilities of the levels that the mixture takes, known ones in place; (C, 1) zeros without a mixture."""
    level_logits: Tensor
    """(C, K) or (C, 1) click logits by level, without position."""
    parts: Mapping[str, Any]
    """Each part's own findings, by its name."""
    _swapped: OtherTexts | None = None

    def mean_over_levels(self, by_level: Tensor) -> Tensor:
        """(C,) the mean of (C, K) or (C, 1) over the candidate's own level distribution, the mixture's."""
        return (self.log_pi.exp() * by_level).sum(1)

    def swapped(self) -> OtherTexts:
        """A share of the candidates, drawn at random once a batch, with a title of another request."""
        if self._swapped is None:
            self._swapped = self.model.with_swapped_titles(self)
        return self._swapped

    def noised(self, scale: Tensor) -> OtherTexts:
        """Candidates with Gaussian noise of (C,) standard deviations, over the batch, on their text side."""
        return self.model.with_noise(self, scale)

    def effect(self, whose: Whose) -> Tensor:
        """(C, K) or (C, 1) what the past of the user, or of the peers, changes in the click logits by level, through all parts:
        `z(x) - z(x without it)`, zero where there is none.

        Without a past its counts, counters and events are those of somebody new; the ids, and the item's counters, are the same.

        Raises:
            ValueError: in training mode, where dropout would pass for an effect.
        """
        return self.model.effect_of_past(self, whose)


class PRECTR(PartedRanker):
    r"""One probability from relevance levels and click, with the user's own interest and preferences.

    PRECTR (arXiv 2503.18395) and PRECTR-V2 (arXiv 2602.20676), of which no code and only summaries were at hand. Of a candidate
    :math:`x`, item i under query q, let :math:`\pi_k = P(l = k | q, i)` be the probability of relevance level :math:`k = 1..K`,
    from the texts alone (`TextRelevance`), :math:`f_m(x)` the features and :math:`s_m(x)` the shift of its m-th part, and
    :math:`\epsilon_p` the examination of the position p that was logged. Then

    .. math:: z = \mathrm{ClickTower}([f_1(x); f_2(x); ...]) + \sum_m s_m(x), \quad
        P(y = 1 | x, p) = \epsilon_p \sum_k \pi_k \, \sigma(z_k),

    and what ranks is the same with the position held at its reference, :math:`\epsilon = 1`. Labels that follow the click, as an
    order follows a cart, have logits :math:`c_k, o_k` from layers of their own on the same features, and a chain at each level:

    .. math:: P(\mathrm{order} | x, p) = \epsilon_p \sum_k \pi_k \, \sigma(z_k) \, \sigma(c_k) \, \sigma(o_k).

    It owns no tables: `Inputs` come in as TorchRec looked them up.

    Args:
        relevance: the text side.
        parts: what the click tower reads and what else moves its logits, by name, in order.
        num_levels: K.
        click_tower: widths of its hidden layers.
        cross_layers: layers of TorchRec's low-rank cross network before them.
        dropout: on the click tower's hidden layers.
        mixture: False gives a single click logit (the levels then play no part).
        position: examination by position; None: the position has no part.
        grade_overrides: a known grade replaces the predicted distribution; as a feature it is a part (`KnownGrade`).
        swap_share: share of the candidates whose title is swapped where a loss asks for it.
        labels: those beside the click -> what comes before each.

    Example::

        match = TextMatch(idf=torch.full((50,), 2.0), is_number=torch.zeros(50, dtype=torch.bool))
        relevance = TextRelevance(None, match, [16], num_levels=4)  # match features alone, no encoder
        widths = Widths(request={"user_id": 8}, candidate={"item_id": 8}, sequences={})
        parts = {"ids": LookedUpFeatures(widths), "text": TextFeatures(16, match.num_features)}
        model = PRECTR(relevance, parts, num_levels=4, click_tower=[32], position=Examination(10))
        inputs = Inputs(  # R = 2 requests with 2 candidates and 1
            request={"user_id": torch.randn(2, 8)},
            candidate={"item_id": torch.randn(3, 8), "position": torch.tensor([1, 2, 1])},
            sequences={},
            texts={
                "query": Texts(torch.tensor([[7, 8], [9, 0]]), rows=torch.tensor([0, 1])),
                "title": Texts(torch.tensor([[7, 5], [8, 6]]), rows=torch.tensor([0, 1, 1])),
            },
            request_weight=torch.ones(2),
            candidate_request=torch.tensor([0, 0, 1]),
            candidate_weight=torch.ones(3),
        )
        predictions = model(inputs)
        assert predictions.ranking["click"].logit.shape == (3,)
        assert predictions.own.level_logits.shape == (3, 4)
    """

    def __init__(
        self,
        relevance: TextRelevance,
        parts: Mapping[str, Part],
        *,
        num_levels: int,
        click_tower: Sequence[int] = (256, 128),
        cross_layers: int = 0,
        dropout: float = 0.0,
        mixture: bool = True,
        position: Examination | None = None,
        grade_overrides: bool = True,
        swap_share: float = 1.0,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.after = dict(labels or {})
        self.use_mixture, self.grade_overrides, self.swap_share = mixture, grade_overrides, swap_share
        self.relevance = relevance
        self.mixture = LevelMixture()
        self.parts = nn.ModuleDict(dict(parts))
        self.position = position
        logits = num_levels if mixture else 1
        self.click_tower = ClickTower(
            self.num_features, list(click_tower), logits, cross_layers=cross_layers, dropout=dropout, labels=self.after
        )
        self.reported = self._reported(num_levels)

    @classmethod
    def build(cls, given: Given, **settings: Any) -> PRECTR:
        """As of `RankingModel`: the arguments of the class, and those of `build_parts`."""
        relevance = given.relevance()
        given = replace(
            given,
            relevance_dim=relevance.tower.head.in_features,
            match_dim=relevance.match_dim,
            title_dim=relevance.title_dim,
            text_dim=relevance.feature_dim,
            by_level=settings["mixture"],
        )
        parts, position = cls.build_parts(given, settings)
        return cls(relevance, parts, num_levels=given.num_levels, position=position, labels=given.labels, **settings)

    def text_side(self) -> TextRelevance:
        """As of `RankingModel`."""
        return self.relevance

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """As of `RankingModel`."""
        return {**self.relevance.groups(), **super().groups()}

    def forward(self, inputs: Inputs) -> Predictions:
        """Scores every candidate."""
        encodings, text = self.relevance.read(inputs, self.encoded_texts)
        log_pi = self._level_log_probabilities(text.relevance.log_pi, inputs)
        logits, outputs = self.logits(self.click_tower, inputs, text)
        ranking = {label: self.mixture.mean(log_pi, p) for label, p in label_chain(logits, self.after).items()}
        own = {name: output.own for name, output in outputs.items() if output.own is not None}
        findings = PRECTRFindings(self, inputs, encodings, text, log_pi, logits["click"], own)
        parts = {} if self.training else {"relevance_probabilities": text.relevance.log_pi.exp()}
        if self.reports_parts and not self.training:
            parts |= self._report(findings) | self.reports_of(outputs)
        return Predictions(ranking, self.at_positions(ranking, inputs), parts, findings)

    def with_swapped_titles(self, findings: PRECTRFindings) -> OtherTexts:
        """As of `PRECTRFindings.swapped`."""
        z = findings.level_logits
        drawn = self.relevance.swap_titles(findings.inputs, findings.encodings, self.swap_share)
        others = self._other_texts(drawn.pair, drawn.match, drawn.foreign, z[drawn.rows])
        return OtherTexts(*(part.new_zeros(len(z), *part.shape[1:]).index_copy(0, drawn.rows, part) for part in others))

    def with_noise(self, findings: PRECTRFindings, scale: Tensor) -> OtherTexts:
        """As of `PRECTRFindings.noised`."""
        real = findings.inputs.candidate_weight > 0
        pair, match = (_with_noise(text, scale, real) for text in (findings.text.pair, findings.text.match))
        return self._other_texts(pair, match, real, findings.level_logits)

    def effect_of_past(self, findings: PRECTRFindings, whose: Whose) -> Tensor:
        """As of `PRECTRFindings.effect`."""
        if self.training:
            raise ValueError("PRECTR is in training mode, where dropout would pass for an effect of the past; call eval() first")
        without, _ = self.logits(self.click_tower, findings.inputs.without_past(whose), findings.text)
        return findings.level_logits - without["click"]

    def _level_log_probabilities(self, log_pi: Tensor, inputs: Inputs) -> Tensor:
        if not self.use_mixture:
            return log_pi.new_zeros(log_pi.shape[0], 1)
        if self.grade_overrides and "level" in inputs.candidate:
            return known_level_log_probabilities(log_pi, inputs.candidate["level"], inputs.candidate.get("predicted"))
        return log_pi

    def _other_texts(self, pair: Tensor, match: Tensor, foreign: Tensor, z: Tensor) -> OtherTexts:
        """The text reaches the score through the level distribution alone: the click tower sees the logged candidate."""
        log_pi = self.relevance(pair, match).log_pi
        logit = self.mixture(log_pi, z).logit if self.use_mixture else z.squeeze(1)
        return OtherTexts(log_pi, foreign, logit)

    def _reported(self, num_levels: int) -> dict[str, ReportedPart]:
        overridden = "; a known or predicted level replaces them" if self.grade_overrides and self.use_mixture else ""
        meaning = f"the relevance tower's own probabilities of the levels, from the lowest up{overridden}"
        found = {"relevance_probabilities": ReportedPart(meaning, width=num_levels)}
        if self.use_mixture:
            meaning = "1 where no level clicks less than the one below it"
            found["levels_in_order"] = ReportedPart(meaning, where="predictions")
            meaning = "click probability at each level"
            found["click_by_level"] = ReportedPart(meaning, width=num_levels, where="explanations")
        for whose, past in _PASTS.items():
            meaning = f"what {past} changes in the click logit, a mean over levels; 0 without that past"
            found[f"effect_{whose}"] = ReportedPart(meaning, signed=True)
            if self.use_mixture:
                meaning = f"what {past} changes in the click logit at each level"
                found[f"effect_{whose}_by_level"] = ReportedPart(meaning, num_levels, signed=True, where="explanations")
                meaning = f"what {past} changes at the highest level less at the lowest"
                found[f"effect_{whose}_slope"] = ReportedPart(meaning, signed=True, where="predictions")
        return found | self.parts_reported()

    def _report(self, findings: PRECTRFindings) -> dict[str, Tensor]:
        z = findings.level_logits
        found: dict[str, Tensor] = {}
        if self.use_mixture:
            found |= {"levels_in_order": (z[:, 1:] >= z[:, :-1]).all(1).float(), "click_by_level": z.sigmoid()}
        for whose in _PASTS:
            effect = findings.effect(whose)
            found[f"effect_{whose}"] = findings.mean_over_levels(effect)
            if self.use_mixture:
                found |= {f"effect_{whose}_by_level": effect, f"effect_{whose}_slope": effect[:, -1] - effect[:, 0]}
        return found


def _with_noise(features: Tensor, scale: Tensor, real: Tensor) -> Tensor:
    """Features (C, D) with Gaussian noise of `scale` (C,) standard deviations of theirs over the real rows."""
    if not features.shape[1]:
        return features
    weight = real.unsqueeze(1).to(features.dtype)
    count = weight.sum().clamp(min=1.0)
    deviations = (features.detach() - (features.detach() * weight).sum(0) / count) * weight
    deviation = (deviations.square().sum(0) / count).sqrt()
    return features + torch.randn_like(features) * deviation * scale.unsqueeze(1)
