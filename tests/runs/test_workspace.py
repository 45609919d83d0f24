"""Files written aside: whole, nobody else's, and readable by whom the umask lets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prectr_torchrec.runs.workspace import build_if_absent, remove, replace_text, replacing


@pytest.fixture(params=[0o022, 0o077], ids=["umask 022", "umask 077"])
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """What a new file may have under the umask that is set."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def test_files_of_libraries_have_the_mode_of_the_umask(tmp_path: Path, mode: int) -> None:
    def build(folder: Path) -> None:
        (folder / "tables").mkdir(parents=True)
        (folder / "text").write_text("", encoding="utf-8")
        save_file({"weight": torch.ones(2)}, folder / "tables" / "private")  # 0600, whatever the umask

    build_if_absent(tmp_path / "made", build)
    with replacing(tmp_path / "weights") as path:
        save_file({"weight": torch.ones(2)}, path)
    replace_text(tmp_path / "line", "1")
    assert modes(tmp_path) == {"text": mode, "private": mode, "weights": mode, "line": mode}


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    for name in (".out.saving", "out.partial", ".out.partial", f".out.{'0' * 16}.partial", "out.tmp", "out"):
        (tmp_path / name).symlink_to(victim)
    replace_text(tmp_path / "out", "written")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "written" and not (tmp_path / "out").is_symlink()
    assert victim.read_text(encoding="utf-8") == "mine"


def test_a_failed_build_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old", encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        replace_text(tmp_path / "out", "half \ud800")
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [("out", "old")]


def test_what_a_killed_job_left_is_removed(tmp_path: Path) -> None:
    for name in ("out", "out.json"):
        (tmp_path / f".{name}.{'a' * 16}.partial").mkdir()
    replace_text(tmp_path / "out", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".out.json.{'a' * 16}.partial", "out"]


def test_of_a_link_the_link_is_removed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for _ in range(2):
        remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
