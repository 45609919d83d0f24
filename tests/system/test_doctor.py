"""Version checks, against the metadata of distributions made up in a temporary folder, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prectr_torchrec.system.doctor import fbgemm_builds

ROOT = Path(__file__).parents[2]
PRECTR = str(Path(sys.executable).parent / "prectr")
FITTING = {"torch": "2.13.0+cpu", "fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.8.0"}


def make_distributions(folder: Path, versions: dict[str, str]) -> None:
    """Metadata only; the FBGEMM ones list a file of their package, unless the version says `stand-in`."""
    for name, version in versions.items():
        version, _, kind = version.partition(" ")
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        (info / "RECORD").write_text(
            "" if kind else f"{name.removesuffix('-cpu').replace('-', '_')}/__init__.py,,\n", encoding="utf-8"
        )


Done = subprocess.CompletedProcess[str]


def import_under(folder: Path, versions: dict[str, str], statement: str = "import prectr_torchrec") -> Done:
    """Imports the package where only these distributions are installed (`-S`: no site-packages)."""
    make_distributions(folder, versions)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.run([sys.executable, "-S", "-c", statement], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "versions",
    [
        FITTING,
        {**FITTING, "fbgemm-gpu": "1.8.0+cpu.stand.in stand-in"},
        {"torch": "2.13.0", "fbgemm-gpu": "1.8.0", "torchrec": "1.8.0"},
        {"torch": "2.14.1", "fbgemm-gpu-cpu": "1.9.0", "torchrec": "1.9.2"},
        {"torch": "2.11.0+cu130", "fbgemm-gpu": "1.6.0", "torchrec": "1.6.1"},
        {"torch": "2.13.0", "fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.8.0"},
    ],
    ids=["cpu", "cpu with the stand-in", "cuda", "the next set", "an older set", "cpu build under a cuda torch"],
)
def test_a_fitting_set_imports(versions: dict[str, str], tmp_path: Path) -> None:
    done = import_under(tmp_path, versions)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({}, "torch is not installed."),
        ({"torch": "2.13.0", "torchrec": "1.8.0"}, "fbgemm is not installed."),
        ({"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0 stand-in"}, "fbgemm is not installed."),
        ({"torch": "2.13.0", "fbgemm-gpu-cpu": "1.8.0"}, "torchrec is not installed."),
        ({**FITTING, "torch": "2.15.0"}, "fbgemm-gpu-cpu 1.8.0 does not fit torch 2.15.0"),
        ({**FITTING, "fbgemm-gpu-cpu": "1.9.0"}, "fbgemm-gpu-cpu 1.9.0 does not fit torch 2.13.0+cpu"),
        ({**FITTING, "torchrec": "1.7.0"}, "fbgemm-gpu-cpu 1.8.0 does not fit torchrec 1.7.0"),
        ({"torch": "2.14.1", "fbgemm-gpu-cpu": "1.9.0", "torchrec": "1.8.0"}, "fbgemm-gpu-cpu 1.9.0 does not fit torchrec 1.8.0"),
        ({"torch": "2.13.0+cpu", "fbgemm-gpu": "1.8.0", "torchrec": "1.8.0"}, "fbgemm-gpu is the CUDA build"),
        ({**FITTING, "fbgemm-gpu": "1.8.0"}, "fbgemm-gpu (CUDA) and fbgemm-gpu-cpu are both installed"),
    ],
)
def test_a_set_that_does_not_fit_ends_in_advice(versions: dict[str, str], message: str, tmp_path: Path) -> None:
    done = import_under(tmp_path, versions)
    assert done.returncode == 1
    assert f"VersionError: {message}" in done.stderr or f"\n{message}" in done.stderr
    torch, release = ("2.14", "1.9") if versions.get("torch") == "2.14.1" else ("2.13", "1.8")
    assert f"pip install 'torch=={torch}.*'" in done.stderr and f"torchrec=={release}.*'" in done.stderr
    assert "torch 2.13 with fbgemm and torchrec 1.8; torch 2.14 with fbgemm and torchrec 1.9" in done.stderr
    assert done.stderr.rstrip().endswith("`prectr doctor` checks again.")


def test_the_check_imports_no_torch(tmp_path: Path) -> None:
    done = import_under(tmp_path, FITTING, "import prectr_torchrec, sys; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_advice_removes_the_build_that_is_in_the_way(tmp_path: Path) -> None:
    statement = "import sys; sys.argv = ['prectr']; from prectr_torchrec.system.doctor import advice; print(advice())"
    done = import_under(tmp_path, {"torch": "2.13.0", "fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}, statement)
    assert "pip uninstall -y fbgemm-gpu" in done.stdout


def test_doctor_reports_this_machine_and_finds_it_well() -> None:
    done = subprocess.run([PRECTR, "doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for part in ("torch ", "torchrec ", "fbgemm library  loads", "gloo", "GiB", "All is well."):
        assert part in done.stdout


def test_doctor_speaks_where_nothing_else_runs(tmp_path: Path) -> None:
    make_distributions(tmp_path, {"torch": "2.15.0"})
    done = subprocess.run([PRECTR, "doctor"], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not fit torch 2.15.0" in done.stdout
    assert "Traceback" not in done.stderr


def test_doctor_reports_a_library_that_crashes(tmp_path: Path) -> None:
    package = tmp_path / "fbgemm_gpu"
    package.mkdir()
    (package / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", encoding="utf-8")
    done = subprocess.run([PRECTR, "doctor"], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "fbgemm does not load: the process was killed by signal 11" in done.stdout


def test_other_commands_end_in_the_advice_without_a_traceback(tmp_path: Path) -> None:
    make_distributions(tmp_path, {"torch": "2.15.0"})
    command = [PRECTR, "train", "--config", "c", "--data", "d", "--run", "r"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    (build, version), *_ = fbgemm_builds().items()
    assert done.stderr.startswith(f"error: {build} {version} does not fit torch 2.15.0")
    assert "Traceback" not in done.stderr


def test_a_rank_says_nothing_of_what_torch_and_torchrec_replace_in_each_other() -> None:
    command = [sys.executable, "-W", "always", "-c", "import prectr_torchrec.training.rank"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "torch.jit" not in done.stderr
