"""One writer at a time: who is refused, what it says, and when the place is free again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prectr_torchrec.baselines.run import run_baseline
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.pairs.pairs import write_pairs
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.simulate.simulate import simulate
from prectr_torchrec.distributed.launch import _locked, launch
from prectr_torchrec.serving.export import export
from prectr_torchrec.serving.index import index_titles
from prectr_torchrec.serving.score_files import score_files
from prectr_torchrec.system.locks import LockedError, file_lock, folder_lock, job_lock
from prectr_torchrec.text.tune import TuneConfig, tune_teacher


@contextmanager
def held_elsewhere(kind: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    code = f"import sys; from pathlib import Path; from prectr_torchrec.system.locks import {kind} as lock\n"
    code += "with lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_a_second_writer_is_told_who_the_first_one_is(tmp_path: Path) -> None:
    with held_elsewhere("folder_lock", tmp_path) as holder:
        with (
            pytest.raises(LockedError, match=rf"{tmp_path} is being written by process {holder.pid} on \S+ since 20"),
            folder_lock(tmp_path),
        ):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with folder_lock(tmp_path):  # the kernel has released it
            assert (tmp_path / ".lock").read_text(encoding="utf-8").startswith(f"process {os.getpid()} ")
    assert not any(tmp_path.iterdir())


CONFIG = RunConfig(name="small")
WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "prepare": ("folder_lock", lambda out: prepare(CONFIG.data, CONFIG.text, out, out)),
    "pairs": ("file_lock", lambda out: write_pairs(CONFIG.data, CONFIG.pairs, out, out)),
    "tune": ("folder_lock", lambda out: tune_teacher(out, out, out, TuneConfig())),
    "simulate": ("folder_lock", simulate),
    "baseline": ("folder_lock", lambda out: run_baseline("mixed", out, out)),
    "export": ("file_lock", lambda out: export(out, out)),
    "index": ("folder_lock", lambda out: index_titles(None, out, out)),  # type: ignore[arg-type]
    "score": ("file_lock", lambda out: score_files(out, out, out)),
    "train": ("folder_lock", lambda out: launch("train", [], 2, output=out)),
    "teach": ("folder_lock", lambda out: launch("teach", [], output=out)),
    "distill": ("folder_lock", lambda out: launch("distill", [], output=out)),
}


@pytest.mark.parametrize("command", WRITERS)
def test_every_writer_is_refused_before_it_looks_at_anything(command: str, tmp_path: Path) -> None:
    kind, write = WRITERS[command]
    with held_elsewhere(kind, tmp_path / "out"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(LockedError, match="is being written by process"):
            write(tmp_path / "out")
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("score --model m --data d --out OUT", "file_lock"),
        ("export --run r --out OUT", "file_lock"),
        ("index --model OUT --items i", "folder_lock"),
        ("teacher-tune --teacher t --pairs p --out OUT", "folder_lock"),
        ("baseline mixed --data d --run OUT", "folder_lock"),
        ("demo --out OUT", "folder_lock"),
        ("train --config c --data d --run OUT", "folder_lock"),
        ("train --config c --data d --run OUT --nproc 2", "folder_lock"),
        ("teach --teacher t --pairs p --out OUT", "folder_lock"),
        ("distill --config c --pairs p --out OUT", "folder_lock"),
        ("prepare --config c --raw r --out OUT", "folder_lock"),
        ("pairs --config c --raw r --out OUT", "file_lock"),
        ("simulate --out OUT", "folder_lock"),
    ],
)
def test_a_second_command_is_refused_before_anything_heavy_is_imported(command: str, kind: str, tmp_path: Path) -> None:
    code = "import sys; from prectr_torchrec.cli.main import app\ntry:\n    app(sys.argv[1:], standalone_mode=False)\n"
    heavy = {"torch", "duckdb", "pyarrow", "prectr_torchrec.config.base"}
    code += f"except ValueError as error:\n    print(error, {heavy} & {{*sys.modules}})"
    with held_elsewhere(kind, tmp_path / "out"):
        words = command.replace("OUT", str(tmp_path / "out")).split()
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert "is being written by process" in done.stdout and done.stdout.endswith("set()\n"), done.stderr


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_a_planted_link_is_not_written_through(plant: Callable[[Path, Path], None], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious", encoding="utf-8")
    (tmp_path / "out").mkdir()
    plant(tmp_path / "out" / ".lock", victim)
    with pytest.raises(ValueError, match=r"\.lock is no plain file"), folder_lock(tmp_path / "out"):
        pass
    assert victim.read_text(encoding="utf-8") == "precious"


def test_a_planted_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ValueError, match="is no plain file"), folder_lock(tmp_path):
        pass


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        worker = os.fork()
        if worker == 0:
            signal.pause()
    try:
        with folder_lock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_a_refused_start_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path / "new"):
        raise ZeroDivisionError
    with file_lock(tmp_path / "pairs.parquet"):
        pass
    assert not any(tmp_path.iterdir())


def test_a_rank_knows_the_lock_of_its_launcher_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with _locked(Path("12:30/run")), job_lock(tmp_path / "12:30" / "run"), job_lock(Path("12:30/run")):
        pass
