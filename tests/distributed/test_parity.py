from pathlib import Path

import pytest
from ranks import run_ranks
from small_run import OF_EVERY_KIND, small_config, write_small_data

from prectr_torchrec.data.schema import TOKENIZER


@pytest.mark.parametrize(
    ("sharding", "optimizer", "mixed"),
    [
        ("row_wise", "rowwise_adagrad", False),
        ("table_wise", "rowwise_adagrad", False),
        ("column_wise", "rowwise_adagrad", False),
        ("column_wise", "adagrad", False),
        (None, "rowwise_adagrad", False),
        (None, "adagrad", True),
    ],
)
def test_sharded_on_two_ranks_equals_unsharded(tmp_path: Path, sharding: str | None, optimizer: str, mixed: bool) -> None:
    data = write_small_data(tmp_path / "data", small_config(**{} if mixed else OF_EVERY_KIND))
    run = tmp_path / "run"
    run.mkdir()
    (run / TOKENIZER).symlink_to(data / TOKENIZER)
    target = "distributed.parity_worker:check_parity"
    assert "parity of" in run_ranks(2, target, data=data, run=run, sharding=sharding, optimizer=optimizer, mixed=mixed)
