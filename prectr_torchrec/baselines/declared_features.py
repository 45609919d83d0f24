"""The columns that a log declares, as features of the boosted trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.config.columns import IdsColumn, NumberColumn, VectorColumn, weights_of
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.reads import COUNTED
from prectr_torchrec.data.columns import Column, declared_of
from prectr_torchrec.data.reader.flat import Columns

Features = dict[str, NDArray[np.float32]]


class DeclaredFeatures:
    """Numbers, days, vectors and lists of ids of users, queries, requests, items and impressions.

    A number is a feature as it is, NaN where missing. Of a vector each number is one. Of lists of ids each frequent id is one:
    its weight, or 1, where the list has it, else 0; and so is the length of the list. Counters of further labels are features
    too, as logarithms.

    Args:
        data: settings of the samples.
        frequent: column of ids -> the ids that become features.
    """

    def __init__(self, data: DataConfig, frequent: Mapping[str, NDArray[np.int64]]) -> None:
        self._numbers = [column for column, _ in declared_of(data, NumberColumn)]
        self._vectors = [column for column, _ in declared_of(data, VectorColumn)]
        weights = weights_of(data.declared())
        self._ids = [(column, weights.get(column.name), frequent[column.name]) for column, _ in declared_of(data, IdsColumn)]
        self._counted = [what for what in data.counted if what not in COUNTED]

    @staticmethod
    def bag_columns(data: DataConfig) -> list[str]:
        """Sample columns that are lists of ids."""
        return [column.name for column, _ in declared_of(data, IdsColumn)]

    @staticmethod
    def columns(data: DataConfig) -> list[str]:
        """The sample columns that are read."""
        kinds = (NumberColumn, VectorColumn, IdsColumn)
        counted = [what for what in data.counted if what not in COUNTED]
        return [
            *(column.name for kind in kinds for column, _ in declared_of(data, kind)),
            *weights_of(data.declared()).values(),
            *(f"{who}_{what}" for who in ("user", "query", "group", "candidate") for what in counted),
        ]

    def __call__(self, columns: Columns, request: NDArray[np.int64]) -> Features:
        """The features of all candidates, (candidates,) each.

        Args:
            request: (candidates,) the request row of each.
        """

        def per_candidate(column: Column, values: Any) -> Any:
            return values if column.listed else values[request]

        features = {column.name: per_candidate(column, columns.values[column.name]) for column in self._numbers}
        for column in self._vectors:
            rows = per_candidate(column, columns.values[column.name])
            features |= {f"{column.name}_{place}": rows[:, place] for place in range(rows.shape[1])}
        for column, weights, ids in self._ids:
            matrix = per_candidate(column, _indicators(columns, column.name, weights, ids))
            features |= {f"{column.name}_{number}": matrix[:, number] for number in range(len(ids))}
            features[f"{column.name}_count"] = per_candidate(column, columns.bags[column.name].lengths.astype(np.float32))
        for what in self._counted:
            for who in ("user", "query", "group"):
                features[f"{who}_{what}"] = np.log1p(columns.values[f"{who}_{what}"].sum(axis=1))[request]
            features[f"candidate_{what}"] = np.log1p(columns.values[f"candidate_{what}"])
        return features


def _indicators(columns: Columns, name: str, weights: str | None, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """(rows, ids) the weight of each of these ids in a row, 0 where it has none."""
    bags = columns.bags[name]
    row = np.repeat(np.arange(len(bags.lengths)), bags.lengths)
    place = np.minimum(np.searchsorted(ids, bags.values), max(len(ids) - 1, 0))
    there = ids[place] == bags.values if len(ids) else np.zeros(len(row), bool)
    value = columns.bags[weights].values if weights else np.ones(len(row), np.float32)
    flat = np.bincount(row[there] * len(ids) + place[there], value[there], minlength=len(bags.lengths) * len(ids))
    return flat.astype(np.float32).reshape(len(bags.lengths), len(ids))
