import json
import re
from pathlib import Path

import pytest
from ranks import run_ranks
from small_run import small_config, write_small_data

from prectr_torchrec.data.schema import TOKENIZER


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_narrow_rows_and_narrow_communication_learn_as_fp32_does(tmp_path: Path, sharding: str) -> None:
    data = write_small_data(tmp_path / "data", small_config())
    run = tmp_path / "run"
    run.mkdir()
    (run / TOKENIZER).symlink_to(data / TOKENIZER)
    output = run_ranks(2, "distributed.precision_worker:print_losses", data=data, run=run, sharding=sharding)
    found = re.search(r"losses (.*)", output)
    assert found
    losses = json.loads(found[1])
    expected = losses.pop("fp32")
    assert losses.keys() == {"fp16 rows", "fp16 vectors", "int8 vectors"}
    for precision, values in losses.items():
        assert values == pytest.approx(expected, abs=2e-3), precision
        assert values != expected, f"{precision} changed nothing: was it used?"
