"""What planning does on several ranks."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from small_run import small_config
from torch.distributed._shard.sharded_tensor import ShardedTensor

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.distributed.process import check_same_devices, process_group
from prectr_torchrec.distributed.sharding import plan_sharding, plan_to_dict, read_plan
from prectr_torchrec.distributed.table_collections import build_embeddings
from prectr_torchrec.distributed.workload import build_workload
from prectr_torchrec.training.trainer import Trainer


def check_planner_failure() -> None:
    config = small_config()
    config.tables["item"].sharding = ["table_row_wise"]  # the EmbeddingCollection has no such type
    with process_group("cpu") as process:
        try:
            plan_sharding(
                build_embeddings(config.tables, config.features, torch.device("meta")), build_workload(config), process.device
            )
        except ValueError as error:
            print(f"rank {dist.get_rank()} heard: {error}")


def check_mixed_devices() -> None:
    with process_group("cpu") as process:
        try:
            check_same_devices(process.rank == 0)
        except ValueError as error:
            print(f"rank {process.rank} heard: {error}")


def check_plan() -> None:
    config = small_config()
    with process_group("cpu") as process:
        plan = plan_to_dict(
            plan_sharding(
                build_embeddings(config.tables, config.features, torch.device("meta")), build_workload(config), process.device
            )
        )
        kinds = {table: sharding["sharding_type"] for module in plan.values() for table, sharding in module.items()}
        print(f"rank {process.rank}: {dict(sorted(kinds.items()))}")


def print_bytes(data: str, run: str, plan: str) -> None:
    """Prints the bytes of this rank's shards and of their optimizer state in a run with a saved plan."""
    with process_group("cpu") as process:
        trainer = Trainer(planned_config(), Path(data), Path(run), process, read_plan(Path(plan)))
        fused = trainer.optimizers.fused.state_dict()["state"]
        state = [value for values in fused.values() for value in values.values()]
        tables = [value for name, value in trainer.model.state_dict().items() if name in fused]
        state += [value for name, value in trainer.model.state_dict().items() if "_mch_" in name]
        held = sum(shard.tensor.nbytes for value in (*tables, *state) for shard in value.local_shards())
        print(f"rank {process.rank}: {held} bytes")


def planned_config() -> RunConfig:
    """Tables of every sharding type, fp16, element-wise Adagrad and managed ids among them."""
    config = small_config()
    for number, table in enumerate(config.tables.values()):
        table.rows = 20_001 + 1_000 * number
    config.tables["item"].dtype = "fp16"
    config.tables["user"].optimizer = "adagrad"
    title_token = config.tables["title_token"].model_copy(update={"ids": "managed", "rows": 8_400})
    config.tables["title_token"] = title_token
    return config


def check_first_rows(data: str, run: str) -> None:
    """Prints whether the ranks' row-wise shards of a fresh run are alike."""
    with process_group("cpu") as process:
        trainer = Trainer(small_config("row_wise"), Path(data), Path(run), process)
        shards = [
            table.local_shards()[0].tensor for table in trainer.model.state_dict().values() if isinstance(table, ShardedTensor)
        ]
        first = torch.cat([shard[:20].flatten() for shard in shards])
        others = [torch.empty_like(first) for _ in range(process.world_size)]
        dist.all_gather(others, first)
        print(f"rank {process.rank}: {len(shards)} tables, {(others[0] == others[1]).sum().item()} equal numbers")
