import json
import re
from pathlib import Path

import pytest
import torch
from distributed.managed_worker import managed_config
from distributed.test_resume import assert_same_run, metrics
from jobs import last_checkpoint, last_step, start_ranks, train
from ranks import kill_when, run_ranks
from small_run import write_small_data
from torchrec.sparse.jagged_tensor import JaggedTensor

from prectr_torchrec.config.tables import ManagedConfig, TableConfig
from prectr_torchrec.distributed.managed import ProbedIds, SortedIds, make_managed
from prectr_torchrec.evaluation import evaluate
from prectr_torchrec.system.errors import ConfigError


def ids(*values: int) -> dict[str, JaggedTensor]:
    return {"item": JaggedTensor(torch.tensor(values), lengths=torch.tensor([len(values)]))}


def sorted_ids(rows: int = 4, interval: int = 1, **settings: object) -> SortedIds:
    table = TableConfig(
        rows=rows, dim=4, ids="managed", buckets=1, sharding=["row_wise"], managed=ManagedConfig(interval=interval, **settings)
    )
    module = make_managed("item", table, torch.device("cpu"))
    assert isinstance(module, SortedIds)
    return module


def rows_of(module: SortedIds, *values: int) -> list[int]:
    rows: list[int] = module(ids(*values))["item"].values().tolist()
    module.evict()
    return rows


def test_ids_have_rows_of_their_own_and_keep_them() -> None:
    module = sorted_ids()
    first = rows_of(module, 2**61, 7, 7, 5)
    assert first[1] == first[2] and len(set(first)) == 3 and 3 not in first
    assert rows_of(module, 5, 7, 2**61) == [first[3], first[1], first[0]]
    assert module.take_counts() == {"lookups": 7, "hits": 7, "evictions": 0, "used": 3, "rows": 3}


def test_a_full_table_gives_the_row_of_the_id_not_seen_for_longest() -> None:
    module = sorted_ids(eviction="lru")
    old = rows_of(module, 1)[0]
    rows_of(module, 2, 3)
    assert rows_of(module, 4) == [old]
    assert rows_of(module, 2, 3, 4)[2] == old
    module.take_counts()
    module.eval()
    assert rows_of(module, 1) == [3]  # the shared row


def test_the_id_seen_least_often_gives_way_to_one_seen_more_often() -> None:
    module = sorted_ids(eviction="lfu")
    rows = rows_of(module, 1, 1, 1, 2, 2, 2, 3)
    assert rows_of(module, 4) == [3]  # seen as often as the least one: no reason to change
    assert rows_of(module, 4, 4) == [rows[6]] * 2
    assert module.take_counts()["evictions"] == 1


def test_an_id_is_admitted_once_it_was_looked_up_often_enough() -> None:
    module = sorted_ids(admission=3, interval=2)
    assert rows_of(module, 1, 1, 2) == [3, 3, 3]
    assert rows_of(module, 1, 2) == [rows_of(module, 1)[0], 3]
    assert module.take_counts()["used"] == 1


def test_no_lookup_of_an_interval_is_forgotten_however_small_its_first_batch() -> None:
    module = sorted_ids(rows=64, interval=3)
    rows_of(module, 1)
    rows_of(module, *range(2, 40))
    assert set(rows_of(module, *range(40, 60))).isdisjoint({63})
    assert module.take_counts()["used"] == 59


def test_a_flush_admits_what_the_interval_has_seen() -> None:
    module = sorted_ids(interval=10)
    assert rows_of(module, 8) == [3]
    module.flush()
    assert rows_of(module, 8) != [3]


def test_ids_in_a_hash_table_are_aged_and_keep_their_rows_where_these_are_held() -> None:
    settings = ManagedConfig(algorithm="multi_probe")
    table = TableConfig(rows=4, dim=4, ids="managed", buckets=1, sharding=["row_wise"], managed=settings)
    module = make_managed("item", table, torch.device("cpu"))
    assert isinstance(module, ProbedIds)
    age, threshold = module._eviction_module(ids(1, 2)["item"])
    assert len(age) == 2 and (age >= threshold).all()  # what is seen now stays
    module.held = True
    assert not module.train().training  # TorchRec admits and evicts in training only


def test_ids_saved_by_fewer_ranks_are_refused() -> None:
    whole = sorted_ids(rows=16)
    of_two = whole.rebuild_with_output_id_range((0, 8), [0, 8, 16])
    of_four = whole.rebuild_with_output_id_range((4, 8), [0, 4, 8, 12, 16])
    saved = of_four.state_dict() | {"_output_segments_tensor": of_two.state_dict()["_output_segments_tensor"]}
    with pytest.raises(ConfigError, match="table item were saved by 2 ranks; load them on 2 or on a divisor of it"):
        of_four.load_state_dict(saved)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Data, a run with managed sequence and bag tables over it, and what its ranks printed."""
    root = tmp_path_factory.mktemp("managed")
    data = write_small_data(root / "data", managed_config())
    return data, root / "run", run_ranks(2, "distributed.managed_worker:train", data=data, run=root / "run")


def test_evicted_rows_restart_with_fresh_weights_and_no_optimizer_state(trained: tuple[Path, Path, str]) -> None:
    cleared = [json.loads(line) for line in re.findall(r"cleared (\{.*?\}) in all", trained[2])]
    assert len(cleared) == 2
    assert all(rank["used"] > 5 for rank in cleared), "no evicted row had been trained on"


def test_metrics_tell_how_managed_and_hashed_tables_fill(trained: tuple[Path, Path, str]) -> None:
    lines = [line["tables"] for line in metrics(trained[1]) if "tables" in line]
    line = lines[-1]
    assert line.keys() == managed_config().tables.keys()
    for name in ("item", "title_token"):
        assert line[name].keys() == {"occupancy", "hit_rate", "evictions"}
        assert 0.9 < line[name]["occupancy"] <= 1 and 0 < line[name]["hit_rate"] < 1
        assert sum(line[name]["evictions"] for line in lines) > 0
    assert 0 < line["user"]["collision_rate"] < 1


def test_a_managed_run_is_evaluated_on_another_number_of_ranks(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    data, run, _ = trained
    evaluate.main(["--run", str(run), "--data", str(data), "--metrics", str(tmp_path / "metrics.json")])
    assert 0 < json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["clicks"]["auc"] < 1


def test_a_stream_through_fifty_times_the_rows_keeps_going_on_cleared_rows() -> None:
    output = run_ranks(2, "distributed.managed_worker:drift", rows=40, times=50)
    drifted = [json.loads(line) for line in re.findall(r"drifted (\{.*?\}) in all", output)]
    assert len(drifted) == 2
    for rank in drifted:
        assert rank["counts"].keys() == {"item", "brand"}
        for counts in rank["counts"].values():
            assert counts["used"] == counts["rows"] == 19 and counts["evictions"] > 10 * counts["rows"]
        assert rank["used"] > 100  # rows with optimizer state, all found cleared


def test_killed_and_resumed_a_managed_run_ends_the_same(tmp_path: Path) -> None:
    config = managed_config()
    data = write_small_data(tmp_path / "data", config)
    train(config, data, tmp_path / "whole")
    run = tmp_path / "killed"
    kill_when(lambda: last_step(run) >= 9, start_ranks(config, data, run))
    train(config, data, run)
    assert_same_run(run, tmp_path / "whole")
    assert any("_mch_sorted_raw_ids" in key for key in last_checkpoint(run))
