"""How often users, queries, groups, items and their attributes occur as shown candidates of the train part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.columns import attributes_trained
from prectr_torchrec.data.prepare.events import Ints, open_columns, write_columns
from prectr_torchrec.data.raw.source import Connection
from prectr_torchrec.data.raw.versions import VERSION

KEYS = {"user": "user_id", "query": "query", "group": "group_id", "item": "item"}
"""What is counted -> its column in the events."""
_KNOWN = {"user": "user_id <> 0", "group": "group_id <> 0"}


def write_trained(con: Connection, data: DataConfig, where: str, folder: Path) -> None:
    """Counts the events of each key that fulfil a condition in SQL; a user, group or attribute that is not known is none."""
    folder.mkdir()
    counted = {name: (key, f"events WHERE {where} AND {_KNOWN.get(name, 'true')}") for name, key in KEYS.items()}
    items, row = ("item_versions", VERSION) if data.valid_from else ("items", "item")
    for stored in attributes_trained(data).values():
        counted[stored] = (stored, f"events e JOIN {items} i ON i.rowid = e.{row} WHERE {where} AND {stored} <> 0")
    for name, (key, rows) in counted.items():
        write_columns(con, f"SELECT {key} AS key, count(*) AS count FROM {rows} GROUP BY {key} ORDER BY {key}", folder / name)


class TrainedCounts:
    """The counts of `write_trained`, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self._columns = {path.name: open_columns(path) for path in folder.iterdir()}

    def counts(self, name: str, keys: NDArray[Any]) -> Ints:
        """(n,) the counts of keys (n,), 0 for those that do not occur."""
        known, counts = self._columns[name]["key"], self._columns[name]["count"]
        if not len(known):
            return np.zeros(len(keys), np.int64)
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[place] == keys, counts[place], 0)
