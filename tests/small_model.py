"""A small model on one rank, for tests of optimizers and checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from small_run import small_config, small_numbers, write_small_data
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from prectr_torchrec.checkpoints.stateful import Parts, RandomStates
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.training.optimizers import Optimizers
from prectr_torchrec.training.sharded import build_sharded


@dataclass
class Small:
    """A small sharded model on one rank."""

    data: Path
    run: Path
    model: DistributedModelParallel
    optimizers: Optimizers

    def train(self, steps: int = 3) -> None:
        reader = SearchReader(small_config(), self.data, "train", self.data / TOKENIZER)
        for batch, _ in zip(reader.epoch(0), range(steps), strict=False):
            self.optimizers.combined.zero_grad()
            self.model(batch)[0].backward()
            self.optimizers.combined.step()

    @torch.no_grad()
    def spoil(self) -> None:
        """Changes all weights at once."""
        for value in self.model.state_dict().values():
            for part in [s.tensor for s in value.local_shards()] if isinstance(value, ShardedTensor) else [value]:
                part.fill_(1)

    @property
    def parts(self) -> Parts:
        return {"model": self.model, "optimizer": self.optimizers, "random": RandomStates(torch.device("cpu"))}

    def weights(self) -> dict[str, Tensor]:
        return copies(self.model.state_dict())

    def states(self) -> dict[str, Tensor]:
        return copies({k: v for states in self.optimizers.fused.state_dict()["state"].values() for k, v in states.items()})


def copies(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: (v.local_shards()[0].tensor if isinstance(v, ShardedTensor) else v).clone() for n, v in values.items()}


@contextmanager
def small_model(folder: Path, config: RunConfig | None = None) -> Iterator[Small]:
    config = config or small_config()
    data = write_small_data(folder / "data", config, requests=40)
    run = folder / "run"
    run.mkdir()
    (run / TOKENIZER).symlink_to(data / TOKENIZER)
    torch.manual_seed(0)
    with process_group("cpu") as process:
        model, optimizers, _ = build_sharded(config, run, process, numbers=small_numbers(config))
        yield Small(data, run, model, optimizers)
