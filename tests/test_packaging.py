"""What an ordinary installation gets: the mapped packages, the configurations, and no stray top-level names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAPPED = {name: f"prectr_torchrec/{name}" for name in ("modules", "launchers", "configs")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("prectr_torchrec", *MAPPED):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build_wheel(source, out)
    return next(out.glob("*.whl"))


def build_wheel(source: Path, out: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", "--no-build-isolation", "-w", out, source], check=True)


def expected_files() -> set[str]:
    """Every Python, YAML and HTML file of the checkout, where it is installed."""
    roots = {"prectr_torchrec": "prectr_torchrec", **MAPPED}
    files = {(path, name) for name in roots for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".yaml", ".html")}
    return {f"{roots[name]}/{path.relative_to(ROOT / name).as_posix()}" for path, name in files}


def test_wheel_holds_every_module_and_configuration(wheel: Path) -> None:
    assert expected_files() <= set(zipfile.ZipFile(wheel).namelist())


def test_wheel_installs_one_top_level_name(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"prectr_torchrec"}


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has the wheel, and what is installed here beside it; the checkout is not on its path."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # a path alone: the .pth files in it, of which one leads to the checkout, are not read
    paths = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(paths), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", folder / "venv" / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", wheel], check=True)
    return folder


def test_installed_wheel_takes_the_first_steps_of_the_demo(fresh: Path) -> None:
    def prectr(*arguments: str | Path) -> str:
        done = subprocess.run([fresh / "venv" / "bin" / "prectr", *arguments], cwd=fresh, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "--out" in prectr("demo", "--help")
    prectr("simulate", "--out", "log", "--requests", "40", "--users", "8", "--queries", "6", "--items", "40")
    prectr("init", "log/raw", "--out", "mine.yaml")
    assert "impressions" in prectr("prepare", "--config", "mine.yaml", "--raw", "log/raw", "--out", "samples")
    assert "name: demo_v1" in prectr("config", "--config", "demo_v1")


def test_installed_wheel_imports_its_mapped_packages(fresh: Path) -> None:
    modules = ("prectr_torchrec.cli.demo", "prectr_torchrec.launchers.components", "prectr_torchrec.modules")
    code = f"import {', '.join(modules)}, sys; print(*(sys.modules[name].__file__ for name in {modules}))"
    python = [fresh / "venv" / "bin" / "python", "-c", code]
    done = subprocess.run(python, cwd=fresh, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(fresh)) for path in done.stdout.split())


def test_the_oldest_python_is_the_oldest_that_every_requirement_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[\[<>=! ]", requirement)[0] for requirement in project["dependencies"]]
    wanted = [metadata.metadata(name).get("Requires-Python") or "" for name in names if name != "fbgemm-gpu"]
    oldest = max(int(found[1]) for text in wanted if (found := re.search(r">=\s*3\.(\d+)", text)))
    assert project["requires-python"] == f">=3.{oldest}"


def test_citation_and_changes_are_of_the_version() -> None:
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == newest[1]
    assert version_of(ROOT).startswith(newest[1].rpartition(".")[0])


def version_of(folder: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "setuptools_scm"], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_version_is_of_the_git_tag_and_survives_in_a_source_distribution(source: Path, tmp_path: Path) -> None:
    clone = shutil.copytree(source, tmp_path / "clone")
    assert version_of(clone) == "0.1.0.dev0"
    git = ["git", "-c", "user.name=tester", "-c", "user.email=tester@example.org", "-C", clone]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *words], check=True)
    assert re.match(r"0\.1\.(0\.)?dev\d+\+g[0-9a-f]+", version_of(clone))  # a clone without tags
    subprocess.run([*git, "tag", "v1.2.3"], check=True)
    assert version_of(clone) == "1.2.3"
    code = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=clone, check=True, capture_output=True)
    shutil.unpack_archive(tmp_path / "prectr_torchrec-1.2.3.tar.gz", tmp_path, filter="data")
    build_wheel(tmp_path / "prectr_torchrec-1.2.3", tmp_path / "wheel")
    assert [path.name.split("-")[1] for path in (tmp_path / "wheel").iterdir()] == ["1.2.3"]


def test_source_distribution_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    code = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path)
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    build_wheel(unpacked, tmp_path / "wheel")
    rebuilt = next((tmp_path / "wheel").glob("*.whl"))
    assert set(zipfile.ZipFile(rebuilt).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_no_top_level_modules_or_launchers_are_importable(tmp_path: Path) -> None:
    code = "import importlib.util as u; assert not any(map(u.find_spec, ('modules', 'launchers', 'configs')))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_stand_in_for_fbgemm_says_so_and_brings_the_cpu_build_and_no_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "packaging/fbgemm-gpu", source)
    build_wheel(source, tmp_path)
    (wheel,) = tmp_path.glob("fbgemm_gpu-1.8.0+cpu.stand.in-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name.startswith("fbgemm_gpu-1.8.0+cpu.stand.in.dist-info/") for name in names)
    metadata = zipfile.ZipFile(wheel).read("fbgemm_gpu-1.8.0+cpu.stand.in.dist-info/METADATA").decode()
    assert "Requires-Dist: fbgemm-gpu-cpu==1.8.0" in metadata


def test_constraints_name_one_version_of_every_requirement_and_are_what_make_install_takes() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    fixed = {re.sub(r"[-_.]+", "-", name).lower() for name, _, version in (line.partition("==") for line in lines) if version}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [wanted for extra in ("dev", "docs", "serve", "trees") for wanted in project["optional-dependencies"][extra]]
    wanted = {re.split(r"[\[<>=! ]", name)[0].lower() for name in (*project["dependencies"], *extras)}
    assert wanted - fixed <= {"fbgemm-gpu", "prectr-torchrec"}  # of the machine, and this project
    installs = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert all("--constraint constraints.txt" in line for line in installs if "--upgrade" not in line)
