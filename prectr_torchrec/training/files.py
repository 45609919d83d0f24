"""Small text files of a run directory, whole or not at all. No torch: the report is to open quickly."""

from __future__ import annotations

from pathlib import Path

from prectr_torchrec.data.workspace import replacing


def replace_text(path: Path, text: str) -> None:
    """Writes a small file so that readers see the old or the new one, never half of it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_lines(path: Path) -> list[str]:
    """Whole lines only: a killed run may have left half of one, a running one may be writing it. None without the file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [line for line in text[: text.rfind("\n") + 1].splitlines() if line]
