"""Predicted levels: a relevance service's word on pairs without a grade, packed as in `levels.py`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from prectr_torchrec.config.data import Levels
from prectr_torchrec.data.levels import MAX_LEVELS, PACKED_UNITS
from prectr_torchrec.data.raw.files import scan_parquet
from prectr_torchrec.data.raw.source import Connection, one_row
from prectr_torchrec.data.teacher_scores import read_scores_manifest


def find_scores(folders: Sequence[Path], levels: Levels) -> tuple[Path, ...]:
    """The files of some folders of soft grades.

    Raises:
        ValueError: an unfinished folder, or one of other levels than the configuration's.
    """
    files: list[Path] = []
    for folder in folders:
        manifest = read_scores_manifest(folder, levels)
        if levels.count > MAX_LEVELS:
            raise ValueError(f"data.levels: predicted levels go up to {MAX_LEVELS}, here are {levels.count}")
        files += [folder / name for name in manifest["files"]]
    return tuple(files)


def load_predicted(con: Connection, files: Sequence[Path], levels: int) -> int:
    """Makes table predicted(query, item, predicted), of pairs without a grade; the mean where several files grade a pair.

    Args:
        con: connection with the tables of the log.
        files: from `find_scores`; none makes an empty table.
        levels: K.

    Returns:
        Its number of rows.
    """
    con.execute("CREATE TABLE predicted (query BIGINT, item BIGINT, predicted BIGINT)")
    if not files:
        return 0
    sums = ", ".join(f"sum(probabilities[{k}]::DOUBLE) AS p{k}" for k in range(1, levels + 1))
    below = ["0", *(f"round({PACKED_UNITS} * ({_plus(k)}) / ({_plus(levels)}))::BIGINT" for k in range(1, levels + 1))]
    packed = " + ".join(f"(({high}) - ({low})) * {256**k}::HUGEINT" for k, (low, high) in enumerate(itertools.pairwise(below)))
    wrapped = f"(packed - CASE WHEN packed >= {2**63} THEN {2**64}::HUGEINT ELSE 0 END)::BIGINT"  # a sure eighth level
    con.execute(
        f"""INSERT INTO predicted SELECT query, item, {wrapped} FROM (SELECT q.rowid AS query, i.rowid AS item, {packed} AS packed
        FROM (SELECT query_id, item_id, {sums} FROM {scan_parquet(files)} GROUP BY ALL) s
        JOIN queries q USING (query_id) JOIN items i USING (item_id)
        ANTI JOIN graded j ON j.query = q.rowid AND j.item = i.rowid) ORDER BY 1, 2"""
    )
    return int(one_row(con, "SELECT count(*) FROM predicted")[0])


def _plus(levels: int) -> str:
    return " + ".join(f"p{k}" for k in range(1, levels + 1))
