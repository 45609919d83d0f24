"""Twenty steps sharded on the ranks of torchrun, and the same twenty unsharded in one process, compared.

The unsharded side is plain PyTorch with Adagrad written out. Row-wise Adagrad keeps one number a row *and column shard*, so
its unsharded twin of a column-wise table works on the same blocks of columns; element-wise Adagrad has no such blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from small_run import MIXED, OF_EVERY_KIND, small_config, small_numbers
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.train import StageConfig
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.reader import SearchReader
from prectr_torchrec.data.schema import TOKENIZER
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.training.optimizers import Optimizers
from prectr_torchrec.training.sharded import build_sharded
from prectr_torchrec.training.task import build_task

STEPS = 20
OFFSETS = (
    "by_grade",
    "position_bias",
    "log_sd",
    "title.mean",
    "title.width",
    "position.logit",
    "level_logit",
    "position_logit",
    "base_logit",
    "declared.weight",
    "log_precision",
    ".prior",
    "prior_key",
    "prior_value",
)
STAGE = StageConfig(epochs=1, lr=1e-3, encoder_lr=5e-4, table_lr=0.05, warmup_steps=3)


def check_parity(data: str, run: str, sharding: str | None, optimizer: str, mixed: bool) -> None:
    """Args: mixed: of mixed effects; else of every kind of column."""
    train = {"weight_decay": 0.01, "taste_weight_decay": 0.01, "clip_norm": 0.5, "stages": [STAGE.model_dump()]}
    config = small_config(sharding, train=train, **MIXED if mixed else OF_EVERY_KIND)
    for table in config.tables.values():
        table.optimizer = optimizer  # type: ignore[assignment]
    with process_group("cpu") as process:
        model, optimizers, _ = build_sharded(config, Path(run), process, numbers=small_numbers(config))
        torch.manual_seed(5)
        reference = build_task(config, Path(data) / TOKENIZER, numbers=small_numbers(config))
        _copy_weights(reference.state_dict(), model.state_dict())
        pipeline = TrainPipelineSparseDist(model, optimizers.combined, process.device)
        model.train()
        batches = batches_of(config, data, process.rank, process.world_size)
        sharded_losses = train_steps(pipeline, optimizers, batches, STEPS)
        assert {type(m).__name__ for m in pipeline._pipelined_modules} == {
            "ShardedEmbeddingCollection",
            "ShardedEmbeddingBagCollection",
        }

        every_rank = [list(batches_of(config, data, rank, process.world_size)) for rank in range(process.world_size)]
        expected, states = _train_unsharded(reference, every_rank, config, _column_blocks(model.state_dict()))
        torch.testing.assert_close(sharded_losses, expected, atol=1e-5, rtol=1e-5)
        # Element-wise Adagrad's first step divides a gradient by itself: the rounding of one near zero shows in its weight.
        _assert_equal(model.state_dict(), reference.state_dict(), atol=5e-5 if optimizer == "adagrad" else 1e-5)
        compared = _assert_states_equal(model.state_dict(), optimizers.fused.state_dict()["state"], states)
        print(f"parity of {len(model.state_dict())} weights and {compared} table states after {STEPS} steps")


def train_steps(
    pipeline: TrainPipelineSparseDist[Any, Any], optimizers: Optimizers, batches: list[SearchBatch], steps: int
) -> Tensor:
    """The mean loss over the ranks at each step."""
    source, losses = iter(batches), []
    for step in range(steps):
        optimizers.set_rates(STAGE, step, steps)
        losses.append(pipeline.progress(source).terms["loss"])
    total = torch.stack(losses)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def batches_of(config: RunConfig, data: str, rank: int, world_size: int) -> list[SearchBatch]:
    reader = SearchReader(
        config, Path(data), "train", Path(data) / TOKENIZER, rank=rank, world_size=world_size, shuffle=True, seed=3
    )
    return [b for epoch in range(2) for b in reader.epoch(epoch)][:STEPS]


def _column_blocks(state_dict: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """First column and width of each block of columns of each sharded table."""
    return {
        name: sorted({(s.shard_offsets[1], s.shard_sizes[1]) for s in value.metadata().shards_metadata})
        for name, value in state_dict.items()
        if isinstance(value, ShardedTensor)
    }


def _train_unsharded(
    task: torch.nn.Module, every_rank: list[list[SearchBatch]], config: RunConfig, blocks: dict[str, list[tuple[int, int]]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Plain PyTorch over the mean of the ranks' losses; returns losses and each table's sum of squares by element."""
    tables = {f"embeddings.{n}": p for n, p in task.embeddings.named_parameters()}
    squares = {name: torch.zeros_like(p) for name, p in tables.items()}
    encoder = [p for n, p in task.model.named_parameters() if ".encoder." in n]
    named = {n: p for n, p in task.model.named_parameters() if ".encoder." not in n}
    offsets = [p for n, p in named.items() if n.endswith(OFFSETS)]
    towers = [p for n, p in named.items() if not n.endswith(OFFSETS)]
    groups = [{"params": towers}, {"params": encoder}, {"params": offsets, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, weight_decay=config.train.weight_decay)
    losses = []
    for step, batches in enumerate(zip(*every_rank, strict=True)):
        warmup, decay = min(1.0, (step + 1) / STAGE.warmup_steps), (STEPS - step) / STEPS
        for group, lr in zip(adamw.param_groups, (STAGE.lr, STAGE.encoder_lr, 10 * STAGE.lr), strict=True):
            group["lr"] = lr * warmup * decay
        task.zero_grad()
        loss = torch.stack([task(batch)[0] for batch in batches]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*towers, *encoder, *offsets], config.train.clip_norm)
        adamw.step()
        for name, p in tables.items():
            if p.grad is None:  # of a feature that the ranker does not read
                continue
            row_wise = config.tables[name.split(".")[-2]].optimizer == "rowwise_adagrad"
            for start, width in blocks[name]:
                columns = slice(start, start + width)
                square = p.grad[:, columns] ** 2
                squares[name][:, columns] += square.mean(1, keepdim=True) if row_wise else square
                p.data[:, columns] -= STAGE.table_lr * warmup * p.grad[:, columns] / (squares[name][:, columns].sqrt() + 1e-8)
        losses.append(loss.detach())
    return torch.stack(losses), squares


def _assert_states_equal(weights: dict[str, Any], fused: dict[str, Any], squares: dict[str, Tensor]) -> int:
    """Compares the optimizer state of this rank's shards; returns how many there were."""
    compared = 0
    for name, states in fused.items():
        for state in states.values():
            for weight_shard, state_shard in zip(weights[name].local_shards(), state.local_shards(), strict=True):
                (row, column), (rows, columns) = weight_shard.metadata.shard_offsets, weight_shard.metadata.shard_sizes
                expected = squares[name][row : row + rows, column : column + columns]
                expected = expected if state_shard.tensor.numel() == rows * columns else expected[:, 0]
                torch.testing.assert_close(state_shard.tensor.view_as(expected), expected, atol=1e-5, rtol=1e-5)
                compared += 1
    assert compared
    return compared


def _copy_weights(source: dict[str, Tensor], target: dict[str, Any]) -> None:
    with torch.no_grad():
        for name, value in target.items():
            for part, expected in _parts(value, source[name]):
                part.copy_(expected)


def _assert_equal(sharded: dict[str, Any], expected: dict[str, Tensor], atol: float) -> None:
    assert sharded.keys() == expected.keys(), (sorted(sharded), sorted(expected))
    for name, value in sharded.items():
        for part, whole in _parts(value, expected[name]):
            torch.testing.assert_close(part, whole.view_as(part), atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def _parts(value: Any, whole: Tensor) -> list[tuple[Tensor, Tensor]]:
    """This rank's shards beside the same region of the whole tensor."""
    if not isinstance(value, ShardedTensor):
        return [(value, whole)]
    pairs = []
    for shard in value.local_shards():
        region = whole
        for axis, (start, size) in enumerate(zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes, strict=True)):
            if axis < whole.dim():
                region = region.narrow(axis, start, size)
        pairs.append((shard.tensor, region))
    return pairs
