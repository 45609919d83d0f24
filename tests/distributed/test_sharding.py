from pathlib import Path

from ranks import run_ranks
from small_run import small_config, write_small_data


def test_the_plan_follows_each_tables_constraint_on_all_ranks() -> None:
    output = run_ranks(2, "distributed.sharding_worker:check_plan")
    kinds = {"brand": "column_wise", "item": "row_wise", "query": "column_wise", "title_token": "row_wise", "user": "table_wise"}
    assert [f"rank {rank}: {kinds}" in output for rank in (0, 1)] == [True, True]


def test_a_planner_failure_reaches_all_ranks_and_names_the_tables() -> None:
    output = run_ranks(2, "distributed.sharding_worker:check_planner_failure")
    for rank in (0, 1):
        assert f"rank {rank} heard: no sharding plan for 2 ranks on cpu" in output
    assert "item: table_row_wise" in output


def test_ranks_start_with_rows_of_their_own(tmp_path: Path) -> None:
    data = write_small_data(tmp_path / "data", small_config("row_wise"))
    output = run_ranks(2, "distributed.sharding_worker:check_first_rows", data=data, run=tmp_path / "run")
    assert "rank 0: 5 tables, 0 equal numbers" in output
