import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.sharding_worker import planned_config
from ranks import run_ranks
from small_run import small_config, write_small_data

from prectr_torchrec.config.files import dump_config
from prectr_torchrec.distributed import sharding
from prectr_torchrec.distributed.costs import Hardware
from prectr_torchrec.distributed.planning import plan_run, rank_loads, save_plan
from prectr_torchrec.distributed.sharding import plan_from_dict, plan_to_dict, read_plan
from prectr_torchrec.distributed.table_collections import build_embeddings
from prectr_torchrec.distributed.workload import build_workload
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.training.rank import main

GPUS = Hardware(ranks=2, ranks_per_host=2, hbm=10**9, ddr=10**10)


def test_the_plan_follows_each_tables_constraint_on_all_ranks() -> None:
    output = run_ranks(2, "distributed.sharding_worker:check_plan")
    kinds = {
        "badge": "table_wise",
        "brand": "column_wise",
        "device": "table_wise",
        "engine": "table_wise",
        "interest": "row_wise",
        "item": "row_wise",
        "kind": "table_wise",
        "past_brand": "row_wise",
        "query": "column_wise",
        "tag": "row_wise",
        "title_token": "row_wise",
        "user": "table_wise",
    }
    assert [f"rank {rank}: {kinds}" in output for rank in (0, 1)] == [True, True]


def test_a_planner_failure_reaches_all_ranks_and_names_the_tables() -> None:
    output = run_ranks(2, "distributed.sharding_worker:check_planner_failure")
    for rank in (0, 1):
        assert f"rank {rank} heard: no sharding plan for 2 ranks on cpu" in output
    assert "item: table_row_wise" in output


def test_hosts_with_and_without_gpus_make_no_job() -> None:
    output = run_ranks(2, "distributed.sharding_worker:check_mixed_devices")
    assert [f"rank {rank} heard: ranks [1] have no GPU of their own, the others have" in output for rank in (0, 1)] == [True] * 2


def test_ranks_start_with_rows_of_their_own(tmp_path: Path) -> None:
    data = write_small_data(tmp_path / "data", small_config("row_wise"))
    output = run_ranks(2, "distributed.sharding_worker:check_first_rows", data=data, run=tmp_path / "run")
    assert "rank 0: 12 tables, 0 equal numbers" in output


def test_planned_bytes_are_those_of_the_tensors_that_a_run_with_the_plan_makes(tmp_path: Path) -> None:
    config = planned_config()
    plan = plan_run(build_workload(config), GPUS)
    assert plan is not None
    save_plan(plan, tmp_path / "plan.json")
    data = write_small_data(tmp_path / "data", config)
    files = {"data": data, "run": tmp_path / "run", "plan": tmp_path / "plan.json"}
    output = run_ranks(2, "distributed.sharding_worker:print_bytes", **files)
    held = [int(count) for _, count in sorted(re.findall(r"rank (\d): (\d+) bytes", output))]
    assert [load.tables for load in rank_loads(build_workload(config), plan, GPUS)] == pytest.approx(held, rel=0.02)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    config = planned_config()
    plan = plan_run(build_workload(config), GPUS)
    assert plan is not None
    save_plan(plan, tmp_path / "plan.json")
    module = torch.nn.ModuleDict({"embeddings": build_embeddings(config.tables, config.features, torch.device("meta"))})
    assert plan_to_dict(plan_from_dict(read_plan(tmp_path / "plan.json"), module, build_workload(config), GPUS)) == plan


@pytest.mark.parametrize(
    ("ranks", "settings", "message"),
    [
        (1, {}, "the plan is for 2 ranks; here are 1"),
        (3, {}, "tables.item: the plan is for 2 ranks; here are 3"),
        (2, {"rows": 5}, "tables.item: the plan has 20001 rows x 8; the configuration has 5 x 8"),
        (2, {"kernel": "fused_uvm"}, "tables.item: the plan has sharding row_wise and kernel fused; the configuration allows"),
        (2, {"name": "things"}, "the plan of embeddings.sequences.8 has the tables"),
    ],
)
def test_a_plan_for_something_else_is_refused(ranks: int, settings: dict[str, Any], message: str) -> None:
    config = planned_config()
    plan = plan_run(build_workload(config), GPUS)
    assert plan is not None
    if "name" in settings:
        plan["embeddings.sequences.8"][settings["name"]] = plan["embeddings.sequences.8"].pop("item")
    else:
        config.tables["item"] = config.tables["item"].model_copy(update=settings)
    module = torch.nn.ModuleDict({"embeddings": build_embeddings(config.tables, config.features, torch.device("meta"))})
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_from_dict(plan, module, build_workload(config), GPUS._replace(ranks=ranks))


def test_training_takes_the_plan_and_refuses_one_for_more_ranks(tmp_path: Path) -> None:
    config = planned_config()
    plan = plan_run(build_workload(config), GPUS)
    assert plan is not None
    save_plan(plan, tmp_path / "plan.json")
    (tmp_path / "small.yaml").write_text(dump_config(config), encoding="utf-8")
    files = {"config": tmp_path / "small.yaml", "data": write_small_data(tmp_path / "data", config), "run": tmp_path / "run"}
    with pytest.raises(ConfigError, match="the plan is for 2 ranks; here are 1"):
        main([word for name, path in {**files, "plan": tmp_path / "plan.json"}.items() for word in (f"--{name}", str(path))])


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"world_size": {"a": 2}}', encoding="utf-8")
    with pytest.raises(ConfigError, match="no sharding plan; write one with `prectr plan --save`"):
        read_plan(tmp_path / "plan.json")


def test_the_least_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/self/cgroup": ["0::/job/step"], "/sys/fs/cgroup/job/step/memory.max": ["max"]}
    files |= {"/sys/fs/cgroup/job/memory.max": ["4096"], "/sys/fs/cgroup/memory.max": ["8192"]}
    monkeypatch.setattr(sharding, "_lines", lambda path: files.get(str(path), []))
    assert sharding.host_memory() == 4096
    monkeypatch.setattr(sharding, "_lines", lambda path: [])
    assert sharding.host_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
