"""Planning for machines that are not at hand."""

import pytest
from small_run import small_config

from prectr_torchrec.config.files import load_config
from prectr_torchrec.distributed.costs import Hardware, shard_cost
from prectr_torchrec.distributed.planning import (
    find_changes,
    format_misfit,
    format_plan,
    make_hardware,
    plan_run,
    rank_loads,
    tightest,
)
from prectr_torchrec.distributed.workload import build_workload
from prectr_torchrec.system.sizes import format_bytes


def cluster(gpus: int, **sizes: str) -> Hardware:
    return make_hardware(gpus, 8, **{"hbm": "80GB", "ddr": "2TB", "ssd": "0GB", **sizes})


@pytest.mark.parametrize("gpus", [64, 128])
def test_billions_of_ids_are_planned_without_a_gpu(gpus: int) -> None:
    config, hardware = load_config("billion_ids"), cluster(gpus)
    plan = plan_run(build_workload(config), hardware)
    assert plan is not None
    loads = rank_loads(build_workload(config), plan, hardware)
    assert len(loads) == gpus
    assert all(load.hbm < 0.85 * 80e9 for load in loads)
    big = 12e9 * (64 * 2 + 4)  # 1e10 and twice 1e9 rows of fp16, and a number of row-wise Adagrad each
    assert sum(load.tables for load in loads) == pytest.approx(big, rel=0.01)
    text = format_plan(build_workload(config), plan, hardware)
    assert "item         10,000,000,000  64   fp16   1.32 TB  row_wise" in text and "tightest: rank 0 with" in text


def test_eight_gpus_are_too_few_for_billions_and_each_change_was_tried() -> None:
    config, hardware = load_config("billion_ids"), cluster(8)
    assert plan_run(build_workload(config), hardware) is None
    changes = {change.what: change for change in find_changes(build_workload(config), hardware)}
    kinds = ["fp16 rows", "rows in host memory", "24 GPUs on 3 hosts", "rows on SSD (to plan with: `train` refuses them)"]
    assert [name.split(",")[0] for name in changes] == kinds
    assert changes["fp16 rows"].plan is None  # the large tables are fp16 already
    for change in list(changes.values())[1:]:
        assert change.plan is not None
        load, tier, share = tightest(rank_loads(change.workload, change.plan, change.hardware), change.hardware)
        assert tier == "hbm" and share <= 1 and load.ddr <= 2e12 / 8
    cached = changes["rows in host memory, a cache in HBM"]
    assert "tables.item.kernel=fused_uvm_caching" in cached.settings
    text = format_misfit(build_workload(config), hardware)
    assert "8 ranks have 544 GB of HBM" in text and "fp16 rows: does not fit either" in text


@pytest.mark.parametrize("kind", ["host memory", "SSD"])
def test_the_settings_of_a_change_make_the_run_fit(kind: str) -> None:
    settings = ["tables.item.rows=9000000001", "train.stages.0.reset_tables=true"]
    config, hardware = load_config("billion_ids", settings), cluster(8, ssd="4TB")
    change = next(change for change in find_changes(build_workload(config), hardware) if kind in change.what)
    changed = load_config("billion_ids", [*settings, *change.settings])
    assert changed.tables == change.workload.tables and plan_run(build_workload(changed), hardware) is not None


def test_half_the_rows_bytes_is_the_first_change_where_it_is_enough() -> None:
    config = small_config("row_wise")
    for table in config.tables.values():
        table.rows, table.dim = 1_000_000, 64
    changes = find_changes(build_workload(config), make_hardware(2, 2, hbm="1400MB", ddr="10GB", ssd="0GB"))
    first = next(iter(changes))
    assert first.what == "fp16 rows" and first.plan is not None and len(first.settings) < len(config.tables)


def test_row_wise_state_stays_in_hbm_when_rows_leave_it() -> None:
    config = small_config()
    size, where = (1000, 8), {"ranks": 1, "device": "cuda"}
    config.tables["item"].rows = 1000
    fused, uvm = (shard_cost(build_workload(config), "item", size, kernel=kernel, **where) for kernel in ("fused", "fused_uvm"))
    assert (fused.weights, fused.state) == (32_000, 4_000)
    assert (fused.storage.hbm - uvm.storage.hbm, uvm.storage.ddr) == (32_000, 32_000)


def test_a_bag_is_sent_once_a_row_of_the_batch_and_a_sequence_once_an_id() -> None:
    config = small_config()  # 8 requests, 64 candidates of 8 title tokens, histories of 6 and peers of 4
    where = {"kernel": "fused", "ranks": 2, "device": "cpu"}
    assert sorted(build_workload(config).inputs["item"]) == [(8, 4), (8, 6), (8, 8)]
    bag, sequence = (shard_cost(build_workload(config), name, (101, 8), **where) for name in ("title_token", "item"))
    assert (bag.lookups, sequence.lookups) == (2 * 64 * 8, 2 * 8 * 18)
    assert bag.communication == (8 * bag.lookups + 2 * 4 * 2 * 64 * 8) / 2
    assert sequence.communication == (8 + 2 * 4 * 8) * sequence.lookups / 2


@pytest.mark.parametrize(
    ("rows", "ranks", "kind"),
    [(5, 4, "table_wise"), (1, 2, "table_wise"), (7, 4, "row_wise"), (8, 4, "row_wise"), (8, 1, "table_wise")],
)
def test_a_table_that_leaves_a_rank_without_rows_or_has_one_rank_is_planned_whole(rows: int, ranks: int, kind: str) -> None:
    config = small_config("row_wise")
    config.tables["brand"].rows = config.tables["item"].rows = rows
    plan = plan_run(build_workload(config), make_hardware(ranks, ranks, hbm="0GB", ddr="1GB", ssd="0GB", device="cpu"))
    assert plan is not None
    found = {name: table for tables in plan.values() for name, table in tables.items()}
    assert found["brand"]["sharding_type"] == found["item"]["sharding_type"] == kind
    assert all(size[0] > 0 for table in found.values() for size in table["shards"])


@pytest.mark.parametrize(
    ("dim", "ranks", "columns"), [(64, 1, [64]), (64, 2, [32, 32]), (64, 8, [8] * 8), (12, 8, [4] * 3), (20, 2, [20])]
)
def test_columns_are_cut_for_the_ranks_and_counted_with_their_state(dim: int, ranks: int, columns: list[int]) -> None:
    config = small_config()
    config.tables["brand"].rows, config.tables["brand"].dim = 1_000_000, dim
    config.tables["brand"].shard_columns = None
    hardware = make_hardware(ranks, ranks, hbm="0GB", ddr="10GB", ssd="0GB", device="cpu")
    plan = plan_run(build_workload(config), hardware)
    assert plan is not None
    brand = next(tables["brand"] for tables in plan.values() if "brand" in tables)
    assert [size[1] for size in brand["shards"]] == columns
    said = next(line for line in format_plan(build_workload(config), plan, hardware).splitlines() if line.startswith("brand "))
    assert f"  {format_bytes(4e6 * dim + 4e6 * len(columns))}  " in said


def test_a_wrong_number_of_gpus_says_what_is_right() -> None:
    with pytest.raises(ValueError, match="gpus is 12: must be a multiple of gpus-per-host, 8"):
        cluster(12)


def test_a_sharding_type_that_a_collection_lacks_is_an_error_not_a_misfit() -> None:
    config = small_config()
    config.tables["item"].sharding = ["table_row_wise"]
    with pytest.raises(ValueError, match="No available sharding type"):
        plan_run(build_workload(config), cluster(8))


def test_numbers_of_hosts_that_the_buckets_do_not_allow_are_not_tried() -> None:
    settings = ["rows=4_200_000_000", "ids=managed", "sharding=[row_wise]"]
    config = load_config("prectr_v2", [f"tables.item.{setting}" for setting in settings])
    (more,) = (change for change in find_changes(build_workload(config), cluster(8, hbm="40GB")) if "hosts" in change.what)
    assert more.what == "24 GPUs on 3 hosts" and more.plan is not None
