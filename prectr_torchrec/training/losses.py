"""The losses that a configuration names, and their weights."""

from __future__ import annotations

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.kinds import ModelConfig
from prectr_torchrec.config.losses import LossesConfig
from prectr_torchrec.models import located
from prectr_torchrec.modules import CrossEntropy, Loss
from prectr_torchrec.system.errors import ConfigError


def build_losses(config: LossesConfig, model: ModelConfig, data: DataConfig) -> tuple[dict[str, Loss], dict[str, float]]:
    """By name, in the order in which they are added up: those with a weight, those that belong to the kind of ranker, and the
    cross-entropies of labels beside the click.

    Raises:
        ConfigError: a loss reads what the ranker does not find.
    """
    losses: dict[str, Loss] = {}
    weights: dict[str, float] = {}
    for name, section in config:
        weight = model.losses.get(name, 0.0) if section.weight is None else section.weight
        if not section.built_of or (not weight and name not in model.losses):
            continue
        if missing := section.reads - model.finds():
            if not weight or section.weight is None:
                continue
            raise ConfigError(f"losses.{name}: reads {min(missing)}, which model.kind {model.kind!r} as it is set does not find")
        losses[name] = located("losses", section.built_of).build(data.levels.grades, **section.model_dump(exclude={"weight"}))
        weights[name] = weight
    for label, settings in data.further_labels.items() if model.predicts_labels else ():
        losses[f"bce_{label}"] = CrossEntropy(label, settings.after)
        weights[f"bce_{label}"] = config.labels.get(label, 1.0)
    return losses, weights
