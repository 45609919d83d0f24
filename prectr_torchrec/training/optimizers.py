"""Adagrad inside the tables' backward, AdamW for the towers, a rate of its own for the text encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from prectr_torchrec.config.tables import TableConfig
from prectr_torchrec.config.train import StageConfig, TrainConfig
from prectr_torchrec.modules import SearchEmbeddings
from prectr_torchrec.runs.rates import decay, warmup
from prectr_torchrec.training.schedule import rate_factor

OFFSET_RATE = 10
"""Of `lr`, where `offset_lr` is null."""


def apply_table_optimizers(embeddings: SearchEmbeddings, tables: dict[str, TableConfig], stages: list[StageConfig]) -> None:
    """To be called before sharding: each table updates itself in backward, by the optimizer that `tables.*.optimizer` names."""
    rate = stages[0].table_lr if stages else 0.01
    for name, parameter in embeddings.named_parameters():
        if not parameter.requires_grad:  # the ids of a managed table
            continue
        table = name.split(".")[-2]  # sequences.embeddings.<table>.weight
        optimizer = RowWiseAdagrad if tables[table].optimizer == "rowwise_adagrad" else torch.optim.Adagrad
        apply_optimizer_in_backward(optimizer, [parameter], {"lr": rate, "eps": 1e-8})


class Optimizers:
    """The optimizers of a sharded model and the rates that a stage sets for them.

    Args:
        model: the sharded model.
        config: rates and decay.
        requests: of a step of all ranks together.

    Attributes:
        factor: what the rates of AdamW are multiplied by, as of `schedule.rate_factor`.
        combined: what the pipeline steps; `fused` for the tables, `dense` for everything else.
    """

    def __init__(self, model: DistributedModelParallel, config: TrainConfig, requests: int) -> None:
        self.factor = rate_factor(requests, config.reference_requests)
        dense = {n: p for n, p in in_backward_optimizer_filter(model.named_parameters()) if p.requires_grad}
        named = {id(p): group for group, found in model.module.model.groups().items() for p in found}
        offsets = {id(getattr(m, name)) for m in model.modules() for name in getattr(m, "offsets", ())}

        def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            parts: dict[str, list[nn.Parameter]] = {}
            for parameter in parameters:
                part = named.get(id(parameter), "offsets" if id(parameter) in offsets else "towers")
                parts.setdefault(part, []).append(parameter)
            decay = {"taste": config.taste_weight_decay} | dict.fromkeys(("offsets", "rows"), 0.0)
            groups = [
                {"params": parameters, "part": part, "weight_decay": self.factor * decay.get(part, config.weight_decay)}
                for part, parameters in sorted(parts.items())
            ]
            return torch.optim.AdamW(groups, fused=True)

        self.fused = model.fused_optimizer
        self.dense = KeyedOptimizerWrapper(dense, adamw)
        clipped = GradientClippingOptimizer(self.dense, clipping=GradientClipping.NORM, max_gradient=config.clip_norm)
        self.combined = CombinedOptimizer([("fused", self.fused), ("dense", clipped)])

    def set_rates(self, stage: StageConfig, step: int, total_steps: int) -> None:
        """Sets the rates for the step to come: linear warm-up times linear decay, of tables where `table_decay` says so.

        In a stage of graded pairs only the relevance side has something to learn from, and only it is moved.

        Args:
            stage: the stage's peak rates.
            step: steps done in this stage.
            total_steps: of this stage.
        """
        risen, left = warmup(step, total_steps, stage.warmup_steps), decay(step, total_steps)
        peak = dict.fromkeys(("towers", "taste", "offsets", "rows"), 0.0)
        peak |= {"encoder": stage.encoder_lr, "relevance": stage.relevance_lr or stage.lr}
        if stage.split == "train":
            offsets = stage.offset_lr or OFFSET_RATE * stage.lr
            peak |= {"towers": stage.lr, "taste": stage.lr, "offsets": offsets, "rows": OFFSET_RATE * stage.lr}
        for group in self.dense.param_groups:
            group["lr"] = peak[group["part"]] * self.factor * risen * left
        for group in self.fused.param_groups:
            group["lr"] = stage.table_lr * risen * (left if stage.table_decay else 1.0)
        self.fused.step()  # passes the rate on to the kernels; the update itself happens in backward

    def restart(self) -> None:
        """Forgets AdamW's moments: those of one stage's loss say nothing of the next one's."""
        for state in self.dense.state.values():
            for moment in state.values():
                moment.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Of all optimizers."""
        return dict(self.combined.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Takes what `state_dict` gave."""
        self.combined.load_state_dict(state_dict)

    def init_state(self) -> None:
        """Makes the lazily built state exist, so that a checkpoint has something to load into."""
        self.dense.init_state()


@torch.no_grad()
def reset_tables(
    model: DistributedModelParallel,
    optimizers: Optimizers,
    seed: int,
    tables: Mapping[str, TableConfig],
    keep: Collection[str] = (),
) -> None:
    """Starts the sparse tables afresh, weights and optimizer state; the towers keep what they learned.

    Several epochs overfit id tables long before the towers are done; see `train.stages[].reset_tables`.

    Args:
        seed: of this rank's rows; the same seed and sharding give the same rows.
        tables: of the run.
        keep: tables to leave as they are.
    """
    generators: dict[torch.device, torch.Generator] = {}
    fused = optimizers.fused.state_dict()["state"]
    for name, table in sorted(model.state_dict().items()):
        if name not in fused or name.split(".")[-2] in keep:
            continue
        bound = tables[name.split(".")[-2]].start
        for shard in table.local_shards():
            device = shard.tensor.device
            generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
            shard.tensor.uniform_(-bound, bound, generator=generator)
        for state in fused[name].values():
            for shard in state.local_shards():
                shard.tensor.zero_()
    for module in model.modules():  # `state_dict` has written the caches of HBM back; they would now hide the fresh rows
        for lookup in getattr(module, "_lookups", []):
            if hasattr(lookup, "purge"):
                lookup.purge()
