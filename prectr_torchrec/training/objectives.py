"""The loss and its parts: click, anchor, semantic consistency, exposure debias and rehearsal."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec import JaggedTensor

from prectr_torchrec.config.objective import DebiasConfig, ObjectiveConfig
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.modules import (
    PRECTR,
    PRECTROutput,
    anchor_loss,
    consistency_loss,
    divergence,
    grade_distributions,
    level_targets,
    load_balance,
    weighted_mean,
)
from prectr_torchrec.text.student import judge
from prectr_torchrec.training.rehearsal import Rehearsal


class Objective(nn.Module):
    r"""Runs the towers and sums the weighted terms of the loss.

    :math:`L = \mathrm{BCE} + a_{rel} \cdot \mathrm{anchor} + a_{mono} \cdot \mathrm{consistency} + a_{deb} R_{debias} +
    a_{gate} \cdot \mathrm{balance} + a_{reh} \cdot \mathrm{rehearsal}`. Each term is a mean over the rows that it speaks of;
    padding and rows without the label have weight zero.
    """

    def __init__(self, prectr: PRECTR, config: ObjectiveConfig) -> None:
        super().__init__()
        self.prectr = prectr
        self.config = config
        self.rehearsal: Rehearsal | None = None
        self.effects = False
        """Report the personal effects too, in evaluation mode."""

    def forward(
        self, batch: SearchBatch, sequences: dict[str, JaggedTensor], bags: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and, detached: `loss`, its unweighted terms, and per candidate what scoring needs."""
        debias = self.config.debias
        lower = self.training and debias.weight > 0
        swap = (self.training and self.config.random_negatives > 0) or (lower and debias.negatives == "swap")
        distance = lowered_distance(batch.level, debias) if lower else None
        noise = distance * debias.noise if distance is not None and debias.negatives == "noise" else None
        output = self.prectr(
            self._with_hidden_grades(batch),
            sequences,
            bags,
            swap_titles=self.config.swap_share if swap else 0.0,
            noise=noise,
            effects=self.effects and not self.training,
        )
        if self.config.anchor_on == "grade":
            anchored = grade_distributions(batch.relevance, self.prectr.level_grades).nan_to_num()
        else:
            anchored = level_targets(batch.level, output.relevance.log_pi.shape[1])
        terms = {
            "bce": weighted_mean(
                -(batch.click * output.click.log_click + (1 - batch.click) * output.click.log_no_click), batch.click_weight
            ),
            "anchor": anchor_loss(output.relevance.log_pi, anchored),
        }
        loss = terms["bce"] + self.config.anchor * terms["anchor"]
        if self.prectr.use_mixture:
            terms["consistency"] = consistency_loss(output.level_logits, batch.click_weight, self.config.consistency_margin)
            loss = loss + self.config.consistency * terms["consistency"]
        if distance is not None:
            terms["debias"], terms["lowered_anchor"] = debias_loss(output, batch, distance, debias)
            loss = loss + debias.weight * (terms["debias"] + terms["lowered_anchor"])
        incentive = output.personal.incentive
        if incentive is not None and self.training:
            terms["load_balance"] = load_balance(incentive.gate, batch.click_weight)
            loss = loss + self.config.load_balance * terms["load_balance"]
        if output.swapped is not None and self.config.random_negatives > 0:
            terms["random_negatives"] = weighted_mean(-output.swapped.log_pi[:, 0], output.swapped.foreign.float())
            loss = loss + self.config.random_negatives * terms["random_negatives"]
        if self.training and self.rehearsal is not None:
            pairs, teacher = self.rehearsal.draw()
            log_pi = judge(self.prectr.relevance, pairs).log_pi
            terms["rehearsal"] = divergence(log_pi, teacher, self.config.rehearsal.temperature)
            loss = loss + self.config.rehearsal.weight * terms["rehearsal"]
        report = {name: term.detach() for name, term in terms.items()}
        report["loss"] = loss.detach()
        report["logit"] = output.click.logit.detach()
        report["reference_logit"] = output.reference_click.logit.detach()
        report["log_pi"] = output.relevance.log_pi.detach()
        return loss, report | _parts(output)

    def _with_hidden_grades(self, batch: SearchBatch) -> SearchBatch:
        share = self.config.hidden_grades if self.training else 0.0
        return batch.without_grades(torch.rand_like(batch.click) < share) if share else batch


def _parts(output: PRECTROutput) -> dict[str, Tensor]:
    """What the model says of each candidate besides its score, where it has the part: `levels_in_order` (C,), 1 where no level
    clicks less than the one below it; `preference_weights` (C, 3) of own, peers and prior, `taste` (C,). And, where asked for, of
    the personal effect: `effect_own` and `effect_peers` (C,), means over the candidate's own level distribution;
    `effect_own_slope` and `effect_peers_slope` (C,), highest less lowest level, with a mixture."""
    z = output.level_logits
    parts = {"levels_in_order": (z[:, 1:] >= z[:, :-1]).all(1).float()} if z.shape[1] > 1 else {}
    for who, by_level in (output.effect._asdict() if output.effect is not None else {}).items():
        parts[f"effect_{who}"] = output.mean_over_levels(by_level)
        if by_level.shape[1] > 1:
            parts[f"effect_{who}_slope"] = by_level[:, -1] - by_level[:, 0]
    if output.personal.preference is not None:
        parts["preference_weights"] = output.personal.preference.weights
    if output.personal.taste is not None:
        parts["taste"] = output.personal.taste.mean
    return {name: part.detach() for name, part in parts.items()}


def lowered_distance(level: Tensor, config: DebiasConfig) -> Tensor:
    """Levels that each row's lowered copy lies below it: drawn from 1..level - 1, or down to level 1 for swapped titles; (C,)
    float.

    Rows below `minimum_level`, those without a grade among them, have none: 0.
    """
    room = (level - 1).clamp(min=0).float()
    drawn = room if config.negatives == "swap" else (torch.rand_like(room) * room).floor() + 1
    return torch.where(level >= config.minimum_level, drawn, 0.0)


def debias_loss(output: PRECTROutput, batch: SearchBatch, distance: Tensor, config: DebiasConfig) -> tuple[Tensor, Tensor]:
    r"""Exposure-bias correction: a relevant row ranks above its copy with a lowered text.

    :math:`\mathrm{mean}[w \cdot \mathrm{clip}(m d - (s(x) - s(\tilde x)), 0, M)]` and the anchor of the copy on the rebuilt
    level :math:`l - d`. `w` leaves out rows that themselves score in the batch's lowest quantile, and passes no gradient. The
    papers name the parts; this form is re-derived here.

    Args:
        distance: (C,) `d` from `lowered_distance`.
    """
    other = output.swapped if config.negatives == "swap" else output.noised
    assert other is not None
    rows = (distance > 0) & other.foreign & (batch.click_weight > 0)
    score = output.reference_click.logit
    enough = score.detach() >= score.detach().masked_fill(~rows, torch.nan).nanquantile(config.quantile)  # NaN without any
    hinge = (config.margin * distance - (score - other.logit)).clamp(0.0, config.clip)
    rebuilt = (batch.level - distance.long()).clamp(min=1) * rows
    return weighted_mean(hinge, (rows & enough).float()), anchor_loss(other.log_pi, level_targets(rebuilt, other.log_pi.shape[1]))
