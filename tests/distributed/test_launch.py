"""Starting ranks on this machine, and what comes back when one fails."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest

from prectr_torchrec.distributed.launch import _rank_environment, _run_ranks, launch
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.failures import WorkerError

TRAIN = ["--config", "nowhere", "--data", "d", "--run", "r"]


def run_script(folder: Path, *lines: str) -> None:
    script = folder / "rank.py"
    script.write_text("\n".join(["import os, signal, time", "rank = int(os.environ['RANK'])", *lines]), encoding="utf-8")
    _run_ranks(["--standalone", "--nproc-per-node=2", str(script), str(folder)])


def test_every_rank_runs(tmp_path: Path) -> None:
    run_script(tmp_path, "import pathlib, sys", "pathlib.Path(sys.argv[1], f'rank{rank}').touch()")
    assert {path.name for path in tmp_path.glob("rank?")} == {"rank0", "rank1"}


def test_an_exception_of_a_rank_is_named(tmp_path: Path) -> None:
    recorded = "from torch.distributed.elastic.multiprocessing.errors import record"
    with pytest.raises(WorkerError, match="rank 1: ValueError: the data is wrong"):
        run_script(tmp_path, recorded, "@record", "def main():", "    if rank: raise ValueError('the data is wrong')", "main()")


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"rank 1 failed \(Signal 9 \(SIGKILL\)"):
        run_script(tmp_path, "os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)")


def test_the_first_cause_is_named_not_the_rank_killed_for_it(tmp_path: Path) -> None:
    # as torchrun ends a rank that is deaf to SIGTERM, half a minute earlier
    deaf = ["if rank == 0:", "    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))"]
    deaf += ["    open(sys.argv[1] + '/deaf', 'w')", "    time.sleep(60)"]
    waits = ["    while not os.path.exists(sys.argv[1] + '/deaf'): time.sleep(0.01)", "    raise OSError('the disk is full')"]
    recorded = "from torch.distributed.elastic.multiprocessing.errors import record"
    with pytest.raises(WorkerError, match="rank 1: OSError: the disk is full"):
        run_script(tmp_path, "import sys", recorded, *deaf, "@record", "def main():", *waits, "main()")


def test_an_exit_code_of_a_rank_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"rank 0 failed \(exit code 3\); its own output is above"):
        run_script(tmp_path, "time.sleep(60) if rank else os._exit(3)")


@pytest.mark.parametrize("line", ["pass", "os._exit(3)"])
def test_a_job_leaves_no_folder_behind(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with contextlib.suppress(WorkerError):
        run_script(tmp_path, line)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_one_rank_runs_in_this_process() -> None:
    with pytest.raises(ConfigError, match="no configuration 'nowhere'"):
        launch("train", TRAIN, nproc=1)


def test_a_launched_rank_does_not_launch_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="no configuration 'nowhere'"):
        launch("train", TRAIN, nproc=2)


def test_no_ranks_is_an_error() -> None:
    with pytest.raises(ValueError, match="nproc is 0; it must be at least 1"):
        launch("train", TRAIN, nproc=0)


def test_cores_are_shared_among_ranks_and_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with _rank_environment(2):
        assert os.environ["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert not {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"} & set(os.environ)


def test_rank_environment_of_the_user_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with _rank_environment(2):
        assert os.environ["OMP_NUM_THREADS"] == "5"
