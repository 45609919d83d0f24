"""Small text files of a run directory, whole or not at all. No torch: the report is to open quickly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prectr_torchrec.data.workspace import replacing


def replace_text(path: Path, text: str) -> None:
    """Writes a small file so that readers see the old or the new one, never half of it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; none without the file.

    Half a line at the end is left out: a killed run may have left it, a running one may be writing it.

    Raises:
        ValueError: another line is no JSON object with a step; names file and line.
    """
    data = path.read_bytes() if path.exists() else b""
    records = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            record = json.loads(line or b"null")
        except ValueError:
            record = number
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        elif line:
            raise ValueError(f"{path}, line {number}: not what a run writes of a step; remove the line")
    return records
