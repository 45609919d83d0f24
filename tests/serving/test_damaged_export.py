"""Exports that are not as they were written: refused with the file's name, or served as they are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from prectr_torchrec import Ranker
from prectr_torchrec.cli.main import app
from prectr_torchrec.runs.workspace import file_digest
from prectr_torchrec.serving import digests
from prectr_torchrec.serving.export import export
from prectr_torchrec.serving.exported_tables import Pieces, map_tensors, write_tensors
from prectr_torchrec.serving.index import index_titles

TABLE = "tables/item.safetensors"


@pytest.fixture
def theirs(exported: Any, tmp_path: Path) -> Path:
    """A copy of the export, to be spoiled."""
    shutil.copytree(exported.folder, tmp_path / "exported")
    return tmp_path / "exported"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def flip(path: Path) -> None:
    """Another number at the end: no header shows it."""
    whole = bytearray(path.read_bytes())
    whole[-2] ^= 1
    path.write_bytes(whole)


DAMAGES: dict[str, Callable[[Path], None]] = {"truncated": truncate, "flipped": flip, "missing": Path.unlink}
FILES = (
    "config.yaml",
    "export.json",
    "schema.json",
    "towers.safetensors",
    TABLE,
    "text/tokenizer.json",
    "text/document_frequency.json",
    "text/model.safetensors",
    "text/config.json",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_named(how: str, name: str, theirs: Path) -> None:
    DAMAGES[how](theirs / name)
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        Ranker.load(theirs)
    assert name in str(refused.value) and str(theirs) in str(refused.value)


def test_tables_that_changed_places_are_refused(theirs: Path) -> None:
    query, item = theirs / "tables" / "query.safetensors", theirs / TABLE
    query.rename(theirs / "other")
    item.rename(query)
    (theirs / "other").rename(item)
    with pytest.raises(ValueError, match=r"\.safetensors: not what was written: its digest is another"):
        Ranker.load(theirs)


def test_a_file_of_nobody_is_refused(theirs: Path) -> None:
    (theirs / "text" / "special_tokens_map.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"special_tokens_map\.json: no file of this export"):
        Ranker.load(theirs)


def test_of_large_files_the_digest_is_compared_when_asked_for(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "LARGE", 1000)
    flip(theirs / TABLE)
    Ranker.load(theirs)
    with pytest.raises(ValueError, match=r"item\.safetensors: not what was written"):
        Ranker.load(theirs, all_digests=True)
    done = CliRunner().invoke(app, ["verify", "--model", str(theirs)])
    assert isinstance(done.exception, ValueError) and "item.safetensors" in str(done.exception)


def test_a_whole_export_is_verified(exported: Any) -> None:
    done = CliRunner().invoke(app, ["verify", "--model", str(exported.folder)])
    assert done.exit_code == 0 and "files as they were written" in done.output


@pytest.mark.parametrize("header", [b"", b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{", (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_file_of_tensors_is_named(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "item.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match=r"item\.safetensors: no file of tensors"):
        map_tensors(tmp_path / "item.safetensors", 0)


def test_a_file_of_fewer_rows_than_it_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "item.safetensors"
    write_tensors(path, {"weight": Pieces(torch.float32, (100, 8), [torch.ones(100, 8)])})
    truncate(path)
    with pytest.raises(ValueError, match="'weight' is not whole"):
        map_tensors(path, 0)


def test_titles_of_another_ranker_are_refused(exported: Any, theirs: Path, ranker: Ranker, tmp_path: Path) -> None:
    pq.write_table(pa.table({"title": ["red lamp", "blue chair"]}), tmp_path / "items.parquet")
    index_titles(ranker, theirs, tmp_path / "items.parquet")
    assert len(Ranker.load(theirs).titles or ()) == 2
    about = json.loads((theirs / "titles.json").read_text(encoding="utf-8"))
    (theirs / "titles.json").write_text(json.dumps({**about, "ranker": "another"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"titles\.safetensors: these are titles of another ranker"):
        Ranker.load(theirs)
    (theirs / "titles.json").write_text(json.dumps(about), encoding="utf-8")
    flip(theirs / "titles.safetensors")
    with pytest.raises(ValueError, match=r"titles\.safetensors: not what was written"):
        Ranker.load(theirs)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_an_export_is_read_by_whom_the_umask_lets(umask: int, exported: Any, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        export(exported.run, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}
    assert file_digest(tmp_path / "out" / TABLE) == file_digest(exported.folder / TABLE)
