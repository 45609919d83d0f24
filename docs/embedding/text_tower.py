"""The text encoder as one more tower of a `TrainPipelineSparseDist` script: users by id, items by what their titles say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.streamable import Pipelineable

from prectr_torchrec.modules import TextEncoder


@dataclass
class Batch(Pipelineable):
    users: KeyedJaggedTensor
    title: Tensor  # (B, W) int64 tokens, 0 is padding
    click: Tensor  # (B,)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return Batch(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def record_stream(self, stream: torch.Stream) -> None:
        for f in fields(self):
            getattr(self, f.name).record_stream(stream)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        table = EmbeddingConfig(name="user", num_embeddings=1000, embedding_dim=32, feature_names=["user_id"])
        self.users = EmbeddingCollection(tables=[table], device=torch.device("meta"))
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        self.text = TextEncoder.from_config(model_type="bert", vocab_size=200, **small)
        self.over = nn.Sequential(nn.Linear(3 * self.text.dim, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        user, title = self.users(batch.users)["user_id"].values(), self.text(batch.title)
        logit = self.over(torch.cat([user, title, user * title], dim=1)).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logit, batch.click)
        return loss, loss.detach()  # what the pipeline trains on, what it gives back


def batches(steps: int, B: int = 256) -> Iterator[Batch]:
    for _ in range(steps):
        user, title = torch.randint(1000, (B,)), torch.randint(1, 200, (B, 6))
        likes = (title % 10 == 0).any(1).float() * 4 - 2 + (user % 2)  # some words please everybody
        yield Batch(KeyedJaggedTensor(["user_id"], user, lengths=torch.ones(B).long()), title, torch.bernoulli(likes.sigmoid()))


def main(steps: int = 80) -> tuple[nn.Module, list[float]]:
    """Trains on the ranks of the process group; returns the sharded model and the losses of this rank."""
    torch.manual_seed(dist.get_rank())
    model, device = Model(), torch.device("cpu")
    apply_optimizer_in_backward(RowWiseAdagrad, model.users.parameters(), {"lr": 0.05})
    planner = EmbeddingShardingPlanner(constraints={"user": ParameterConstraints(sharding_types=["row_wise"])})
    sharded = DistributedModelParallel(model, device=device, plan=planner.collective_plan(model))
    dense = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=2e-3))
    pipeline = TrainPipelineSparseDist(sharded, CombinedOptimizer([sharded.fused_optimizer, adam]), device)
    source = batches(steps)
    return sharded, [pipeline.progress(source).item() for _ in range(steps)]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    _, losses = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    dist.destroy_process_group()
