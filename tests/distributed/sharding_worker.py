"""What planning does on several ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from small_run import small_config

from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.distributed.sharding import plan_sharding, plan_to_dict
from prectr_torchrec.training.build import build_embeddings


def check_planner_failure() -> None:
    config = small_config()
    config.tables["item"].sharding = ["table_row_wise"]  # the EmbeddingCollection has no such type
    with process_group("cpu") as process:
        try:
            plan_sharding(build_embeddings(config, torch.device("meta")), config, process.device)
        except ValueError as error:
            print(f"rank {dist.get_rank()} heard: {error}")


def check_plan() -> None:
    config = small_config()
    with process_group("cpu") as process:
        plan = plan_to_dict(plan_sharding(build_embeddings(config, torch.device("meta")), config, process.device))
        kinds = {table: sharding["sharding_type"] for module in plan.values() for table, sharding in module.items()}
        print(f"rank {process.rank}: {dict(sorted(kinds.items()))}")
