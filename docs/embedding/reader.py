"""The `SearchBatch` reader feeding a model of one's own: prepared samples in, whatever you like on top."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, JaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader, agree_on_batches


class Model(nn.Module):
    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        names = {f: feature.table for f, feature in config.features.items() if feature.table not in config.bag_tables()}
        tables = [
            EmbeddingConfig(name=name, num_embeddings=table.rows, embedding_dim=table.dim, feature_names=found)
            for name, table in config.tables.items()
            if (found := [f for f, column in names.items() if column == name])
        ]
        self.ids = EmbeddingCollection(tables=tables, device=torch.device("meta"))
        self.tower = Tower([name.removeprefix("candidate_") for name in names])

    def forward(self, batch: SearchBatch) -> tuple[Tensor, Tensor]:
        loss = self.tower(batch, self.ids(batch.request_features))
        return loss, loss.detach()


class Tower(nn.Module):
    def __init__(self, features: list[str]) -> None:
        super().__init__()
        self.features = features
        self.layers = nn.Sequential(nn.Linear(16 * len(features) + 1, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, batch: SearchBatch, ids: dict[str, JaggedTensor]) -> Tensor:
        inputs, label = batch.inputs(ids, {}), batch.labels()["click"]
        position = inputs.candidate["position"].unsqueeze(1).float().log1p()
        rows = inputs.rows(self.features)  # of each candidate, and of its request
        logit = self.layers(torch.cat([rows, position], dim=1)).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logit, label.value, label.weight, reduction="sum")
        return loss / label.weight.sum().clamp(min=1)  # padding weighs nothing


def main(data: Path, epochs: int = 6) -> tuple[nn.Module, list[float]]:
    """Trains on the ranks of the process group; returns the sharded model and the losses of this rank."""
    config, device = load_config("demo_dnn"), torch.device("cpu")
    model = Model(config)
    apply_optimizer_in_backward(RowWiseAdagrad, model.ids.parameters(), {"lr": 0.05})
    planner = EmbeddingShardingPlanner(constraints={n: ParameterConstraints(sharding_types=["row_wise"]) for n in config.tables})
    sharded = DistributedModelParallel(model, device=device, plan=planner.collective_plan(model))
    dense = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=3e-3))
    pipeline = TrainPipelineSparseDist(sharded, CombinedOptimizer([sharded.fused_optimizer, adam]), device)
    share = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    reader, losses = SearchReader(config, data, "train", data / "tokenizer", shuffle=True, **share), []
    for epoch in range(epochs):
        batches = agree_on_batches(reader.num_batches(epoch))  # all ranks stop together
        source = reader.epoch(epoch, num_batches=batches)
        losses += [pipeline.progress(source).item() for _ in range(batches)]
    return sharded, losses


if __name__ == "__main__":
    dist.init_process_group("gloo")
    _, losses = main(Path(sys.argv[1]))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    dist.destroy_process_group()
