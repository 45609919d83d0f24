from __future__ import annotations

from pathlib import Path

import pytest

from prectr_torchrec.runs.workspace import read_records, replace_text


def test_half_a_line_at_the_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text('{"step": 1}\n\n{"step": 2}\n{"st', encoding="utf-8")
    assert read_records(tmp_path / "lines") == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", [b'{"step"', b"[]", b"{}", b'{"step": "1"}', b"\xff"])
def test_another_line_is_named(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match="lines, line 2: not what a run writes of a step"):
        read_records(tmp_path / "lines")


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert read_records(tmp_path / "nowhere") == []


def test_a_replaced_file_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for text in ("old", "né"):
        replace_text(tmp_path / "file", text)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", "né".encode())]
