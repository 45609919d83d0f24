"""The table of kernels: every row is TorchRec's, is documented, and can be planned with."""

from pathlib import Path

import pytest
from small_run import small_config
from torchrec.distributed.embedding_types import EmbeddingComputeKernel

from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.kernels import KERNELS
from prectr_torchrec.config.tables import TableConfig
from prectr_torchrec.distributed.costs import Hardware
from prectr_torchrec.distributed.planning import make_hardware, plan_run, rank_loads
from prectr_torchrec.distributed.sharding import PlainShardingPlan
from prectr_torchrec.distributed.workload import Workload, build_workload
from prectr_torchrec.system.errors import ConfigError

ROWS, DIM = 840, 8


@pytest.mark.parametrize("name", KERNELS)
def test_a_table_is_planned_under_its_kernel_and_lies_where_the_row_says(name: str) -> None:
    config, hardware = small_config(), make_hardware(2, 2, hbm="1GB", ddr="1GB", ssd="1GB")
    for other in config.tables.values():
        other.kernel = "fused"
    config.tables["item"] = TableConfig(rows=ROWS, dim=DIM, kernel=name, sharding=["row_wise"], buckets=840)
    workload = build_workload(config)
    plan = plan_run(workload, hardware)
    config.tables["item"].kernel = "fused"
    before = plan_run(workload, hardware)
    assert plan is not None and before is not None
    moved = {
        tier: _sum(workload, plan, hardware, tier) - _sum(workload, before, hardware, tier) for tier in ("hbm", "ddr", "ssd")
    }
    there = KERNELS[name].rows
    assert all((moved[tier] >= ROWS * DIM * 4) == (tier == there) for tier in ("ddr", "ssd")), moved
    assert (moved["hbm"] < 0) == (there != "hbm")


def _sum(workload: Workload, plan: PlainShardingPlan, hardware: Hardware, tier: str) -> int:
    return sum(getattr(load, tier) for load in rank_loads(workload, plan, hardware))


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_one_of_torchrecs_and_documented(name: str) -> None:
    assert EmbeddingComputeKernel(name)
    scaling = Path(__file__).parents[2] / "docs" / "scaling.md"
    row = next(line for line in scaling.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |"))
    assert ("to plan with only" in row) != KERNELS[name].checkpointed and ("CPU" in row) == KERNELS[name].cpu


def test_a_kernel_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"tables\.item\.kernel: .*'fused', 'fused_uvm'.*got 'fused_uwm'"):
        load_config("prectr_v1", ["tables.item.kernel=fused_uwm"])
