"""A small run, trained, evaluated and exported, for the tests of serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from serving_requests import plain_requests
from small_run import write_small_data

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import main as evaluate
from prectr_torchrec.serving.export import export
from prectr_torchrec.training.trainer import Trainer


class Exported(NamedTuple):
    run: Path
    data: Path
    folder: Path
    """Exported as trained."""
    samples: pa.Table
    """The test split."""
    predictions: pa.Table
    """Of the trainer's evaluation."""
    unserved: tuple[str, ...]
    """Columns of the samples that no request of this run has."""

    @property
    def measured(self) -> dict[str, Any]:
        """By that evaluation."""
        return dict(json.loads((self.run / "metrics-test.json").read_text(encoding="utf-8")))

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The samples as a client would send them, without labels."""
        return plain_requests(self.samples.drop_columns(list(self.unserved)))


def exported_job(root: Path, config: RunConfig, *, requests: int, vectors: bool = False) -> Exported:
    """Trains on small data below a folder, evaluates and exports; `vectors`: with those of items."""
    data, run = write_small_data(root / "data", config, requests=requests), root / "run"
    with process_group("cpu") as process:
        Trainer(config, data, run, process).train()
    evaluate(["--run", str(run), "--data", str(data)])
    export(run, root / "exported", vectors=data if vectors else None)
    samples = pa.concat_tables([pq.read_table(path) for path in sorted((data / "test").glob("*.parquet"))])
    unserved = [*config.data.further_labels, *["sample_weight"] * config.data.weighted]
    predictions = pq.read_table(run / "predictions-test.parquet")
    return Exported(run, data, root / "exported", samples, predictions, tuple(f"candidate_{name}" for name in unserved))


def column(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers, NaN where it is null."""
    return table[name].cast(pa.float64()).to_numpy()
