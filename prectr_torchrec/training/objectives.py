"""The losses that a configuration names, and their weights."""

from __future__ import annotations

from prectr_torchrec.config.data import Levels
from prectr_torchrec.config.kinds import PRECTRConfig
from prectr_torchrec.config.objective import ObjectiveConfig
from prectr_torchrec.modules import Anchor, Consistency, CrossEntropy, Debias, LoadBalance, Loss, RandomNegatives


def build_losses(objective: ObjectiveConfig, model: PRECTRConfig, levels: Levels) -> tuple[dict[str, Loss], dict[str, float]]:
    """By name, in the order in which they are added up."""
    losses: dict[str, Loss] = {
        "click": CrossEntropy(),
        "anchor": Anchor(levels.grades if objective.anchor_on == "grade" else None),
    }
    weights = {"click": 1.0, "anchor": objective.anchor}
    if model.mixture:
        losses["consistency"], weights["consistency"] = Consistency(objective.consistency_margin), objective.consistency
    if objective.debias.weight > 0:
        losses["debias"] = Debias(**objective.debias.model_dump(exclude={"weight"}))
        weights["debias"] = objective.debias.weight
    if model.preference.incentive != "none":
        losses["load_balance"], weights["load_balance"] = LoadBalance(), objective.load_balance
    if objective.random_negatives > 0:
        losses["random_negatives"], weights["random_negatives"] = RandomNegatives(), objective.random_negatives
    return losses, weights
