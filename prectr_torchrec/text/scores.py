"""Teacher scores as `prectr teach` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read_teacher_scores(paths: Sequence[Path]) -> pa.Table:
    """One teacher's scores."""
    (path,) = paths
    if not (path / "teach.json").is_file():
        raise ValueError(f"{path}: no (finished) teacher scores here, teach.json is missing; `prectr teach` writes them")
    return pa.concat_tables([pq.read_table(part) for part in sorted(path.glob("part-*.parquet"))])
