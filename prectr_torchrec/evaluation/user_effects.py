"""`prectr effects`: what the strictly past events of a user say of this user at each request, by a ranker of mixed effects."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prectr_torchrec.data.parquet_files import WRITTEN
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.predictions import Rows, sample_files
from prectr_torchrec.evaluation.scoring import score
from prectr_torchrec.modules.rankers.mixed_effects import INPUTS, MixedEffects
from prectr_torchrec.runs.layout import load_run
from prectr_torchrec.runs.workspace import replacing
from prectr_torchrec.state.effects import BLOCK, EffectEvents, posterior, sums_before
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.paths import only_local

LABELLED = ("train", "validation", "test")
"""Splits whose shown candidates are events."""
USER = "user_effect"


class _Requests(NamedTuple):
    """Of a split, by request id."""

    request: NDArray[np.int64]
    user: NDArray[np.int64]
    time: NDArray[np.int64]


@only_local
def write_effects(run: Path, data: Path, out: Path, checkpoint: str = "best") -> dict[str, int]:
    """Writes a file a split with the users' posteriors as of its requests.

    Every shown candidate of a known user is an event. What is said of a user rests on strictly earlier requests alone; the rows
    of queries, groups and items were fitted on the train part, so that there their residuals are smaller than later.

    Args:
        run: of a ranker of kind `mixed` whose users have rows.
        data: prepared folder.
        out: folder for `<split>.parquet`: `request_id`, and `mean` and `sd`, lists of offset, slope on the grade, and taste.
        checkpoint: as of `evaluate`.

    Returns:
        Split -> requests of users with a past.

    Raises:
        ConfigError: another kind of ranker, or users without rows.
    """
    config = load_run(run)
    if config.model.kind != "mixed" or USER not in config.features:
        raise ConfigError(f"{run}: needs a ranker of kind 'mixed' with features.{USER}; this is one of {config.model.kind!r}")
    out.mkdir(parents=True, exist_ok=True)
    splits = {split: _read_requests(data / split) for split in LABELLED if (data / split).is_dir()}
    with tempfile.TemporaryDirectory(dir=out) as folder, process_group(config.train.device) as process:
        files = _EventFiles(Path(folder))
        for split, requests in splits.items():
            scored = score(run, data, split, checkpoint, process)
            variance = cast(MixedEffects, scored.ranker).variance(USER).double().cpu().numpy()
            files.append(scored.rows, requests, len(variance))
        events = files.sort()
        return {split: _write(out / f"{split}.parquet", requests, events, variance) for split, requests in splits.items()}


def _read_requests(split: Path) -> _Requests:
    """By request id."""
    columns = ["request_id", "user_id", "timestamp"]
    table = pa.concat_tables([pq.read_table(path, columns=columns) for path in sample_files(split)]).sort_by("request_id")
    return _Requests(*(table[name].to_numpy() for name in columns))


class _EventFiles:
    """Events on disk, a file a column."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._width = 0

    def append(self, scored: Iterable[Rows], requests: _Requests, width: int) -> None:
        """Adds those of known users with a click label; `width`: D."""
        self._width = width
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context((self._folder / name).open("ab")) for name in EffectEvents._fields}
            for rows in scored:
                kept = (rows["user_id"] != 0) & ~np.isnan(rows["click"])
                slow = rows["logged_logit"][kept].astype(np.float64) - rows[USER][kept]
                e = np.exp(-np.logaddexp(0, -slow))
                time = requests.time[np.searchsorted(requests.request, rows["request_id"][kept])]
                x = rows[INPUTS][kept, :width].astype(np.float64)
                events = EffectEvents(rows["user_id"][kept], time, x, rows["click"][kept] - e, e * (1 - e))
                for name, values in events._asdict().items():
                    files[name].write(np.ascontiguousarray(values).data)

    def sort(self) -> EffectEvents:
        """By user and time; memory holds both, and a block of the rest."""
        columns = {name: self._open(name) for name in EffectEvents._fields}
        order = np.lexsort((columns["time"], columns["user"]))
        for name, column in columns.items():
            with (self._folder / f"{name}.sorted").open("wb") as file:
                for first in range(0, len(order), BLOCK):
                    file.write(np.ascontiguousarray(column[order[first : first + BLOCK]]).data)
        return EffectEvents(*(self._open(f"{name}.sorted") for name in EffectEvents._fields))

    def _open(self, name: str) -> NDArray[Any]:
        path = self._folder / name
        dtype = np.int64 if name.partition(".")[0] in ("user", "time") else np.float64
        flat = np.asarray(np.memmap(path, dtype, mode="r")) if path.stat().st_size else np.zeros(0, dtype)
        return flat.reshape(-1, self._width) if name.startswith("x") else flat


def _write(path: Path, requests: _Requests, events: EffectEvents, variance: NDArray[np.float64]) -> int:
    """Returns how many requests are of users with a past."""
    mean = np.zeros((len(requests.request), len(variance)), np.float32)
    sd = np.zeros_like(mean)
    known = 0
    for rows, sums in sums_before(events, requests.user, requests.time):
        found = posterior(sums, variance)
        mean[rows], sd[rows] = found.mean, found.sd
        known += int(sums.any(axis=1).sum())
    lists = [pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), len(variance)) for values in (mean, sd)]
    with replacing(path) as temporary:
        pq.write_table(pa.table([pa.array(requests.request), *lists], names=["request_id", "mean", "sd"]), temporary, **WRITTEN)
    return known
