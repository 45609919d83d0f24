"""What `docs/reliability.md` says of faults: each one brought about on real ranks and real files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed.fault_worker import fault_config
from ranks import run_ranks
from small_run import write_small_data


def plant_nan(path: Path, row: int) -> None:
    """Into the counters of one request of a sample file."""
    table = pq.read_table(path)
    column = table.schema.get_field_index("user_shown")
    values = table["user_shown"].to_pylist()
    values[row] = [float("nan")] * len(values[row])
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(values, table.schema.field(column).type)), path)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What two ranks printed that walked through the cases of `fault_worker`."""
    folder = tmp_path_factory.mktemp("faults")
    for name in ("data", "planted"):
        write_small_data(folder / name, fault_config())
    plant_nan(folder / "planted" / "train" / "part-00001.parquet", row=5)
    return run_ranks(2, "distributed.fault_worker:walk", data=folder / "data", planted=folder / "planted", runs=folder / "runs")


@pytest.mark.parametrize("case", ["stop", "skip", "explosion"])
def test_a_bad_loss(walked: str, case: str) -> None:
    assert walked.count(f"held: {case}") == 2
