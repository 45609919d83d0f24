"""What a checkpoint holds: parts with a state, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist

from prectr_torchrec.distributed.process import random_states, set_random_states


class Stateful(Protocol):
    """As of Distributed Checkpoint; a module is one as it is."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, sharded or not, in nested mappings."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Takes what `state_dict` gave."""


@runtime_checkable
class Lazy(Protocol):
    """A part whose state is made by its first step."""

    def init_state(self) -> None:
        """Makes the state exist, for a checkpoint to be loaded into."""


Parts = Mapping[str, Stateful]
"""`model`, and what goes on with it: `optimizer`, `random`."""


class RandomStates:
    """The states of this rank's random generators.

    Args:
        device: where the rank works.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> dict[str, Any]:
        """By rank, of this one alone."""
        return {str(dist.get_rank()): random_states(self._device)}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Goes on from there."""
        set_random_states(state_dict[str(dist.get_rank())])
