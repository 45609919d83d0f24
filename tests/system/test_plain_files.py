"""Damaged JSON, YAML and Parquet files of ours end in one complaint with their name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import write_pairs, write_teacher_scores

from prectr_torchrec.checkpoints.best import ValidationLoss, choose_best
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.files import load_config
from prectr_torchrec.data.pairs.pairs import PairsFile
from prectr_torchrec.data.parquet_files import WRITTEN, read_parquet
from prectr_torchrec.data.schema import load_manifest
from prectr_torchrec.data.teacher_scores import read_scores_manifest, read_teacher_scores
from prectr_torchrec.distributed.sharding import read_plan
from prectr_torchrec.runs.layout import checkpoint_index
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.plain_files import read_json, read_yaml
from prectr_torchrec.text.student import read_student

DAMAGED = [b"", b"{", b"\xff\xfe", b"null", b"[1]", b'{"version": []}', b'{"version": "5"}', b"[" * 100_000]
LOSS = ValidationLoss(clicks=1, rows=[2.0], loss=[1.0])
READERS: dict[str, Callable[[Path], Any]] = {
    "prepared.json": load_manifest,
    "teach.json": read_scores_manifest,
    "student.json": read_student,
    "lowest.json": lambda folder: choose_best(folder, LOSS),
    "checkpoints/index.json": checkpoint_index,
    "plan.json": lambda folder: read_plan(folder / "plan.json"),
}


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_json_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"version|expected|JSON|valid|required") as refused:
        READERS[name](tmp_path)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_wrong_in_a_json_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text(json.dumps({"rows": "x" * 1000}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"some\.json: rows: Input should be a valid integer; got 'x+\.\.\.; restore") as refused:
        read_json(tmp_path / "some.json", dict[str, int])
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "content", [b"a: [", b"\xff", b"a: 2026-13-45", b"!!python/object/apply:os.mkdir ['ran']", b"a: !x 1", b"[" * 5000]
)
def test_a_damaged_yaml_file_is_named(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.yaml").write_bytes(content)
    for read in (read_yaml, load_config):
        with pytest.raises(ConfigError, match=r"some\.yaml: not valid YAML: .+$"):
            read(tmp_path / "some.yaml")
    assert not (tmp_path / "ran").exists()


def test_pages_have_checksums(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    pq.write_table(pa.table({"number": list(range(1000))}), path, use_dictionary=False, **{**WRITTEN, "compression": "none"})
    whole = bytearray(path.read_bytes())
    whole[whole.index((500).to_bytes(8, "little"))] ^= 1  # another number, in a file that can be read
    path.write_bytes(whole)
    assert pq.read_table(path)["number"].to_pylist() != list(range(1000))
    with pytest.raises(ValueError, match=r"some\.parquet: not a Parquet file, or a damaged one: .*CRC"):
        read_parquet(path)


@pytest.mark.parametrize("size", [0, 3, 500, -100])
def test_pairs_and_scores_that_are_cut_off_are_named(size: int, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet", queries=10)
    scores = write_teacher_scores(tmp_path / "scores", pairs)
    for path in (tmp_path / "pairs.parquet", scores / "part-00001.parquet"):
        path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"pairs\.parquet: not a Parquet file, or a damaged one"):
        PairsFile.open(tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=r"part-00001\.parquet: not a Parquet file, or a damaged one"):
        read_teacher_scores([scores])


def test_scores_that_lack_rows_are_named(tmp_path: Path) -> None:
    scores = write_teacher_scores(tmp_path / "scores", write_pairs(tmp_path / "pairs.parquet", queries=10))
    part = scores / "part-00001.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)
    with pytest.raises(ValueError, match=rf"{scores}: 79 rows of .* in place of 80 for 4 levels"):
        read_teacher_scores([scores])
    assert DataConfig().levels.count == 4
