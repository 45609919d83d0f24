"""Batch scoring of sample files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ranks import descendants, gone

from prectr_torchrec import Ranker
from prectr_torchrec.serving import score_files as batch
from prectr_torchrec.serving.score_files import score_files


def test_two_processes_score_what_the_ranker_scores(exported: Any, ranker: Ranker, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    assert score_files(exported.folder, exported.data / "test", out, nproc=2) == exported.predictions.num_rows
    found, expected = pq.read_table(out), ranker.score(exported.samples)
    assert found.select(["request_id", "item_id"]).equals(expected.select(["request_id", "item_id"]))
    difference = found["click_probability"].to_numpy() - expected["click_probability"].to_numpy()
    assert abs(difference).max() < 1e-6
    assert os.listdir(tmp_path) == ["scores.parquet"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_stopped_leaves_no_process(exported: Any, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "prectr_torchrec.cli", "score", "--model", exported.folder, "--data", exported.data / "test"]
    command += ["--out", tmp_path / "scores.parquet", "--nproc", "2"]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as job:
        while len(workers := descendants(job.pid)) < 3:  # two, and the one that multiprocessing keeps its accounts in
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(number)
        said = job.communicate()[1]
    assert gone(workers) == [] and "Traceback" not in said


def test_a_job_goes_on_with_the_shards_that_are_missing(exported: Any, tmp_path: Path, monkeypatch: Any) -> None:
    out, parts = tmp_path / "scores.parquet", tmp_path / "scores.parquet.parts"

    def killed(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "_merge", killed)
    with pytest.raises(KeyboardInterrupt):
        score_files(exported.folder, exported.data / "test", out)
    assert not out.exists()
    first, second = sorted(parts.glob("part-*.parquet"))
    second.unlink()
    before = first.stat().st_mtime_ns
    merged = {}
    monkeypatch.setattr(
        batch, "_merge", lambda paths, out, ids: merged.update({p.name: p.stat().st_mtime_ns for p in paths}) or 1
    )
    score_files(exported.folder, exported.data / "test", out)
    assert merged[first.name] == before < merged[second.name]


def test_an_unfinished_job_of_other_samples_is_refused(exported: Any, tmp_path: Path) -> None:
    parts = tmp_path / "scores.parquet.parts"
    parts.mkdir()
    (parts / "settings.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="unfinished job with another model or other samples"):
        score_files(exported.folder, exported.data / "test", tmp_path / "scores.parquet")


def test_a_folder_without_samples_is_refused(exported: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="name a folder of samples"):
        score_files(exported.folder, tmp_path, tmp_path / "scores.parquet")


def test_samples_without_a_column_of_the_ranker_are_refused(exported: Any, tmp_path: Path) -> None:
    path = next((exported.data / "test").glob("*.parquet"))
    (tmp_path / "less").mkdir()
    pq.write_table(pq.read_table(path).drop_columns(["user_shown"]), tmp_path / "less" / path.name)
    with pytest.raises(ValueError, match="column 'user_shown' is missing"):
        score_files(exported.folder, tmp_path / "less", tmp_path / "scores.parquet")
