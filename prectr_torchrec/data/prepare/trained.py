"""How often users, queries, groups and items occur as shown candidates of the train part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.data.prepare.events import Ints, open_columns, write_columns
from prectr_torchrec.data.raw.source import Connection

KEYS = {"user": "user_id", "query": "query", "group": "group_id", "item": "item"}
"""What is counted -> its column in the events."""
_KNOWN = {"user": "user_id <> 0", "group": "group_id <> 0"}


def write_trained(con: Connection, where: str, folder: Path) -> None:
    """Counts the events of each key that fulfil a condition in SQL; a user or group that is not known is none."""
    folder.mkdir()
    for name, key in KEYS.items():
        rows = f"events WHERE {where} AND {_KNOWN.get(name, 'true')}"
        write_columns(con, f"SELECT {key} AS key, count(*) AS count FROM {rows} GROUP BY {key} ORDER BY {key}", folder / name)


class TrainedCounts:
    """The counts of `write_trained`, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self._columns = {name: open_columns(folder / name) for name in KEYS}

    def counts(self, name: str, keys: NDArray[Any]) -> Ints:
        """(n,) the counts of keys (n,), 0 for those that do not occur."""
        known, counts = self._columns[name]["key"], self._columns[name]["count"]
        if not len(known):
            return np.zeros(len(keys), np.int64)
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[place] == keys, counts[place], 0)
