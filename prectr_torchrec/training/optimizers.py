"""Adagrad inside the tables' backward, AdamW for the towers, a rate of its own for the text encoder."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from prectr_torchrec.config import RunConfig, StageConfig, TrainConfig
from prectr_torchrec.modules import SearchEmbeddings

_ENCODER = ".encoder."


def apply_table_optimizers(embeddings: SearchEmbeddings, config: RunConfig) -> None:
    """To be called before sharding: each table updates itself in backward, by the optimizer that `tables.*.optimizer` names."""
    rate = config.train.stages[0].table_lr if config.train.stages else 0.01
    for name, parameter in embeddings.named_parameters():
        table = name.split(".")[-2]  # sequences.embeddings.<table>.weight
        optimizer = RowWiseAdagrad if config.tables[table].optimizer == "rowwise_adagrad" else torch.optim.Adagrad
        apply_optimizer_in_backward(optimizer, [parameter], {"lr": rate, "eps": 1e-8})


class Optimizers:
    """The optimizers of a sharded model and the rates that a stage sets for them.

    Attributes:
        combined: what the pipeline steps; `fused` for the tables, `dense` for everything else.
    """

    def __init__(self, model: DistributedModelParallel, config: TrainConfig) -> None:
        dense = {n: p for n, p in in_backward_optimizer_filter(model.named_parameters()) if p.requires_grad}
        names = {id(p): n for n, p in dense.items()}

        def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            encoder = [p for p in parameters if _ENCODER in names[id(p)]]
            towers = [p for p in parameters if _ENCODER not in names[id(p)]]
            groups = [{"params": towers, "encoder": False}] + ([{"params": encoder, "encoder": True}] if encoder else [])
            return torch.optim.AdamW(groups, weight_decay=config.weight_decay)

        self.fused = model.fused_optimizer
        self.dense = KeyedOptimizerWrapper(dense, adamw)
        clipped = GradientClippingOptimizer(self.dense, clipping=GradientClipping.NORM, max_gradient=config.clip_norm)
        self.combined = CombinedOptimizer([("fused", self.fused), ("dense", clipped)])

    def set_rates(self, stage: StageConfig, step: int, total_steps: int) -> None:
        """Sets the rates for the step to come: linear warm-up, then linear decay of the dense ones; tables keep theirs.

        Args:
            stage: the stage's peak rates.
            step: steps done in this stage.
            total_steps: of this stage.
        """
        warmup = min(1.0, (step + 1) / max(stage.warmup_steps, 1))
        decay = max(total_steps - step, 1) / max(total_steps, 1)
        for group in self.dense.param_groups:
            group["lr"] = (stage.encoder_lr if group["encoder"] else stage.lr) * warmup * decay
        for group in self.fused.param_groups:
            group["lr"] = stage.table_lr * warmup
        self.fused.step()  # passes the rate on to the kernels; the update itself happens in backward

    def init_state(self) -> None:
        """Makes the lazily built state exist, so that a checkpoint has something to load into."""
        self.dense.init_state()


@torch.no_grad()
def reset_tables(model: DistributedModelParallel, optimizers: Optimizers, seed: int) -> None:
    """Starts the sparse tables afresh, weights and optimizer state; the towers keep what they learned.

    Several epochs overfit id tables long before the towers are done; see `train.stages[].reset_tables`.

    Args:
        seed: makes the new rows the same for the same seed, rank and sharding.
    """
    generator = torch.Generator().manual_seed(seed)
    fused = optimizers.fused.state_dict()["state"]
    for name, table in sorted(model.state_dict().items()):
        if name not in fused:
            continue
        rows = table.size(0)
        for shard in table.local_shards():
            fresh = torch.rand(shard.tensor.shape, generator=generator) * 2 - 1
            shard.tensor.copy_(fresh / rows**0.5)
        for state in fused[name].values():
            for shard in state.local_shards():
                shard.tensor.zero_()
