"""Tables of managed ids keep their map."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from distributed.managed_worker import managed_config
from ranks import run_ranks
from serving.test_export import differences
from small_run import write_small_data

from prectr_torchrec import Ranker
from prectr_torchrec.distributed.launch import launch
from prectr_torchrec.serving.export import export
from prectr_torchrec.serving.exported_tables import Pieces, map_tensors, write_tensors


def test_managed_ids_keep_their_rows(tmp_path: Path) -> None:
    data, run = write_small_data(tmp_path / "data", managed_config()), tmp_path / "run"
    run_ranks(2, "distributed.managed_worker:train", data=data, run=run)
    launch("evaluate", ["--run", str(run), "--data", str(data)], 2)  # ids without a row share one of their rank
    export(run, tmp_path / "exported")
    samples = pa.concat_tables([pq.read_table(path) for path in sorted((data / "test").glob("*.parquet"))])
    predictions = pq.read_table(run / "predictions-test.parquet")
    for resident in (0, 2**28):
        assert max(differences(Ranker.load(tmp_path / "exported", resident=resident).score(samples), predictions)) < 1e-5
    assert json.loads((tmp_path / "exported" / "export.json").read_text(encoding="utf-8"))["tables"]["item"]["rows"] == 16


def test_nothing_can_be_kept_too(tmp_path: Path) -> None:
    written = {"ids": Pieces(torch.int64, (0,), iter(())), "rows": Pieces(torch.float32, (2, 3), iter([torch.ones(2, 3)]))}
    write_tensors(tmp_path / "some.safetensors", written)
    for resident in (0, 2**20):
        found = map_tensors(tmp_path / "some.safetensors", resident)
        assert found["ids"].shape == (0,) and found["rows"].sum() == 6
