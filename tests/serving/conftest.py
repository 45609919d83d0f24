"""A small trained run, evaluated and exported once for all tests of serving."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_run import small_config, write_small_data

from prectr_torchrec import Ranker
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.serving.export import export
from prectr_torchrec.training.trainer import Trainer

STAGES = {"stages": [{"split": "train", "epochs": 2, "lr": 0.003, "warmup_steps": 2}]}


class Exported(NamedTuple):
    run: Path
    data: Path
    folder: Path
    """Exported as trained."""
    samples: pa.Table
    """The test split."""
    predictions: pa.Table
    """Of the trainer's evaluation."""


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("serving")
    config = small_config(train=STAGES)
    data, run = write_small_data(root / "data", config, requests=80), root / "run"
    with process_group("cpu") as process:
        Trainer(config, data, run, process).train()
    evaluate(["--run", str(run), "--data", str(data)])
    export(run, root / "exported")
    samples = pa.concat_tables([pq.read_table(path) for path in sorted((data / "test").glob("*.parquet"))])
    return Exported(run, data, root / "exported", samples, pq.read_table(run / "predictions-test.parquet"))


@pytest.fixture(scope="session")
def ranker(exported: Exported) -> Ranker:
    return Ranker.load(exported.folder)
