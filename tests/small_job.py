"""The main job by its commands, in small: simulate, prepare, train on two ranks, evaluate on the shown and on all candidates."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from forked import Forked

SMALL = [
    "text.encoder.hidden_size=16",
    "text.encoder.num_hidden_layers=1",
    "text.encoder.intermediate_size=16",
    "text.vocab_size=600",
    "batch.requests=16",
    "batch.candidates=112",
    "train.stages.0.epochs=1",
    "train.stages.1.epochs=1",
]
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]


def prectr(*arguments: str | Path, code: int = 0) -> str:
    """Runs `prectr` in a process of its own; returns what it printed.

    Raises:
        AssertionError: it ended with another code; carries the output.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Forked("forked:prectr", [tuple(map(str, arguments))], [{}], Path(folder) / "output")
        assert job.wait() == code, job.printed[-6000:]
        return job.printed


def run_small_job(folder: Path) -> None:
    """Leaves `log`, `samples`, `all` (whole candidate sets of the test requests) and `run` in the folder."""
    prectr("simulate", "--out", folder / "log", "--requests", "900", "--users", "60", "--queries", "40", "--items", "240")
    test_from = json.loads((folder / "log" / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
    split = ["--set", f"data.split.test_from={test_from}"]
    raw, oracle = folder / "log" / "raw", folder / "log" / "eval" / "oracle.parquet"
    prectr("prepare", "--config", "demo", "--raw", raw, "--out", folder / "samples", *SETTINGS, *split)
    prectr("prepare", "--config", "demo", "--raw", raw, "--out", folder / "all", "--candidates", oracle, *SETTINGS, *split)
    prectr("train", "--config", "demo", "--data", folder / "samples", "--run", folder / "run", "--nproc", "2", *SETTINGS)
    for data, ranks in (("samples", "2"), ("all", "1")):
        prectr("evaluate", "--run", folder / "run", "--data", folder / data, "--oracle", oracle, "--nproc", ranks)


def quality(folder: Path) -> dict[str, float]:
    """What the job's model is worth against the oracle: expected AUC on the shown and on all candidates."""
    measured = json.loads((folder / "run" / "metrics-candidates.json").read_text(encoding="utf-8"))["oracle"]["expected_auc"]
    return {f"expected_auc_{part}": measured[part]["model"] for part in ("shown", "all")}
