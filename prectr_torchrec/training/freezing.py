"""Leaves tables and tower parameters as they are: `train.freeze`."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torchrec import JaggedTensor

from prectr_torchrec.checkpoints.names import parameter_name, select
from prectr_torchrec.system.errors import ConfigError


def frozen_tables(tables: Iterable[str], freeze: list[str]) -> set[str]:
    """Those of the tables that `train.freeze` names."""
    return {name for name in tables if any(fnmatchcase(f"tables.{name}", pattern) for pattern in freeze)}


def freeze_towers(task: nn.Module, freeze: list[str]) -> None:
    """Takes what `train.freeze` names out of the towers' optimizer; to be called before sharding.

    Raises:
        ConfigError: a pattern matches nothing, or nothing of the towers is left to train.
    """
    parameters = dict(task.named_parameters())
    frozen = select(map(parameter_name, parameters), freeze, (), "train.freeze")
    for key, parameter in parameters.items():
        if parameter_name(key) in frozen and not key.startswith("embeddings."):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for key, parameter in parameters.items() if not key.startswith("embeddings.")):
        raise ConfigError(f"train.freeze: {freeze} leaves no parameter of the towers to train")


class HeldFeatures(nn.Module):
    """Lets no gradient through to the features of frozen tables: Adagrad then neither moves a row nor its sum of squares.

    A rate of zero would go on summing, and turn one bad gradient into rows of NaN.

    Args:
        features: names of the features.
    """

    def __init__(self, features: set[str]) -> None:
        super().__init__()
        self._features = features

    def forward(
        self, sequences: dict[str, JaggedTensor], bags: dict[str, Tensor]
    ) -> tuple[dict[str, JaggedTensor], dict[str, Tensor]]:
        """Detaches what is of frozen tables.

        Args:
            sequences: jagged vectors by feature.
            bags: (C, dim) vectors by feature.
        """
        held = {name: _detached(value) if name in self._features else value for name, value in sequences.items()}
        return held, {name: value.detach() if name in self._features else value for name, value in bags.items()}


def _detached(jagged: JaggedTensor) -> JaggedTensor:
    return JaggedTensor(jagged.values().detach(), lengths=jagged.lengths(), offsets=jagged.offsets())
