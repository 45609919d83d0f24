"""`prectr effects`: samples with sums over past events, by a trained ranker of mixed effects, as columns."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prectr_torchrec.checkpoints.manager import Checkpoints
from prectr_torchrec.config.data import DataConfig, Effect
from prectr_torchrec.config.run import validate_section
from prectr_torchrec.data.columns import CLICK_KNOWN, sample_columns
from prectr_torchrec.data.counted_kinds import sums_width
from prectr_torchrec.data.item_vectors import ITEM_VECTORS
from prectr_torchrec.data.log_ids import IDS
from prectr_torchrec.data.parquet_files import WRITTEN, open_parquet, readable
from prectr_torchrec.data.prepare.prepare import SPLITS
from prectr_torchrec.data.schema import MADE_BY, MANIFEST, TOKENIZER, read_manifest, sample_schema, sample_settings
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.predictions import sample_files
from prectr_torchrec.evaluation.scoring import Scored, score
from prectr_torchrec.modules.rankers.mixed_effects import INPUTS, MEANS, SEEN, SUFFIX, MixedEffects
from prectr_torchrec.runs.layout import CONFIG, load_run
from prectr_torchrec.runs.workspace import digest, replacing
from prectr_torchrec.state.effect_filter import filtered_before
from prectr_torchrec.state.effects import BLOCK, EffectEvents, Floats, as_known, sums_before
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.system.locks import writes_file
from prectr_torchrec.system.paths import only_local

LABELLED = ("train", "validation", "test")
"""Splits whose shown candidates are events."""


class _Requests(NamedTuple):
    """Of a split, by request id."""

    request: NDArray[np.int64]
    user: NDArray[np.int64]
    query: NDArray[np.int64]
    time: NDArray[np.int64]
    starts: NDArray[np.int64]
    """Of their candidates in `click_known`."""
    click_known: NDArray[np.int64] | None
    """Of the candidates of one after the other, where clicks are known late; 0: never."""

    def known_of(self, row: NDArray[np.intp]) -> NDArray[np.int64] | None:
        """`click_known` of candidates.

        Args:
            row: (n,) of the requests of all candidates, one request after the other.
        """
        if self.click_known is None:
            return None
        first = np.flatnonzero(np.diff(row, prepend=-1))
        place = np.arange(len(row)) - np.repeat(first, np.diff(first, append=len(row)))
        return self.click_known[self.starts[row] + place]

    def keys(self, by: _By) -> NDArray[np.int64]:
        """What events are counted by; 0: nobody known."""
        if by != "own":
            return self.user if by == "user" else self.query
        pair = (self.query.astype(np.uint64) * _ODD) ^ self.user.astype(np.uint64)
        return np.where((self.user == 0) | (self.query == 0), 0, pair.view(np.int64))


_By = Literal["user", "query", "own"]
"""`own`: this user's under the query."""
_COUNTED_BY: dict[Effect, tuple[_By, ...]] = {"user": ("user",), "query": ("query", "own")}
"""The first one's sums, less those of the second."""
_COLUMNS: dict[str, Any] = {
    "time": np.int64,
    "x": np.float64,
    "logit": np.float64,
    "examination": np.float64,
    "impression": np.int64,
    "click": np.bool_,
}
"""Of events, a file each."""
NOTHING = 1e-9
"""Of sums less others: what is rounding, and no information of an event."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: spreads queries over all bits, so that two pairs hardly ever meet."""


@only_local
@writes_file("out")
def write_effects(
    run: Path, data: Path, out: Path, *, events: Path | None = None, of: Sequence[Effect] = ("user",), checkpoint: str = "best"
) -> dict[str, dict[Effect, int]]:
    """Writes prepared samples anew, with sums over events as of each request as columns; `state/effects.py` says of what.

    Every shown candidate with a click label is an event; where clicks are known later than that they were shown, every shown one
    is, not clicked until its click is known. Sums are over what is known before a request: of `user`, of this user, unless nobody
    is known; of `query`, of others under the query. Logits leave out the effects of all of these.

    Args:
        run: of a ranker of kind `mixed` with rows for them.
        data: prepared folder.
        out: folder to write.
        events: prepared folder whose labelled splits are the events; None: `data`.
        of: whose sums.
        checkpoint: as of `evaluate`.

    Returns:
        Split -> of whom -> requests with a past.

    Raises:
        ConfigError: another kind of ranker, one without such rows, or samples that leave requests out.
        FileExistsError: `out` is there already.
        ValueError: samples that the ranker does not fit, or that have sums already.
    """
    config, events = load_run(run), events or data
    for who in of:
        if config.model.kind != "mixed" or f"{who}{SUFFIX}" not in config.features:
            kind = config.model.kind
            raise ConfigError(f"{run}: needs a ranker of kind 'mixed' with features.{who}{SUFFIX}; this is one of {kind!r}")
    if out.exists():
        raise FileExistsError(f"{out} is there already; remove it or choose another folder")
    manifest = read_manifest(data, config.data, run / CONFIG)
    own = validate_section(DataConfig, manifest["settings"]["data"], str(data / MANIFEST))
    if own.keep_unclicked < 1:
        raise ConfigError(f"{data}: samples without some of the log's requests (data.keep_unclicked), whose events sums lack")
    found: dict[str, dict[Effect, int]] = {}
    with replacing(out) as folder, process_group(config.train.device) as process:
        folder.mkdir()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            files = _EventFiles(Path(scratch), of)
            for split in (split for split in LABELLED if (events / split).is_dir()):
                files.append(score(run, events, split, checkpoint, process), _read_requests(events / split, own))
            wanted = own.model_copy(update={"effects": files.widths})
            for split in (split for split in SPLITS if (data / split).is_dir()):
                requests = _read_requests(data / split, own)
                sums = files.sums(requests, Path(scratch) / split)
                found[split] = _copy_split(data / split, folder / split, wanted, requests, sums)
        for name in (TOKENIZER, IDS, ITEM_VECTORS):
            if (data / name).is_dir():
                shutil.copytree(data / name, folder / name)
        settings = {**manifest["settings"], "data": sample_settings(wanted)}
        by = ranker_digest(run, checkpoint)
        about = {**manifest, "settings": settings, "digest": digest(settings), MADE_BY: by}
        (folder / MANIFEST).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return found


def ranker_digest(run: Path, checkpoint: str) -> str:
    """Digest of the files of a run's checkpoint."""
    return digest(json.loads((Checkpoints(run).path(checkpoint) / "files.json").read_text(encoding="utf-8")))


def _read_requests(split: Path, data: DataConfig) -> _Requests:
    """By request id."""
    columns = ["request_id", "user_id", "query_id", "timestamp", "num_candidates"]
    known = [f"candidate_{CLICK_KNOWN}"] * data.late
    table = pa.concat_tables([pq.read_table(path, columns=columns + known) for path in sample_files(split)])
    table = table.sort_by("request_id")
    request, user, query, time, lengths = (table[name].to_numpy() for name in columns)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    return _Requests(request, user, query, time, starts, pc.list_flatten(table[known[0]]).to_numpy() if known else None)


class _EventFiles:
    """Events on disk, a file a column.

    Args:
        folder: for the files.
        of: whose effects are asked for; logits leave them out.
    """

    def __init__(self, folder: Path, of: Sequence[Effect]) -> None:
        self._folder, self._of = folder, of
        self._variances: dict[Effect, Floats] = {}
        self._sorted: dict[_By, EffectEvents] = {}
        self._impressions = 0

    @property
    def widths(self) -> dict[Effect, int]:
        """D of each."""
        return {who: len(variance) for who, variance in self._variances.items()}

    def append(self, scored: Scored, requests: _Requests) -> None:
        """Adds a split."""
        ranker = cast(MixedEffects, scored.ranker)
        self._variances = {who: ranker.variance(f"{who}{SUFFIX}").double().cpu().numpy() for who in self._of}
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context((self._folder / name).open("ab")) for name in _COLUMNS}
            counted = list(dict.fromkeys(by for who in self._of for by in _COUNTED_BY[who]))
            keys = [(stack.enter_context((self._folder / by).open("ab")), requests.keys(by)) for by in counted]
            for rows in scored.rows:
                row = np.searchsorted(requests.request, rows["request_id"])
                click_known = requests.known_of(row)
                events = as_known(requests.time[row], rows["click"], click_known)
                shown = np.full(len(row), True) if click_known is not None else ~np.isnan(rows["click"])
                kept = shown[events.impression]
                of = events.impression[kept]
                logit = rows[MEANS].astype(np.float64) - sum(rows[f"{who}{SUFFIX}"] for who in self._of)
                values = {
                    "time": events.time[kept],
                    "x": rows[INPUTS][of, : max(self.widths.values())],
                    "logit": logit[of],
                    "examination": rows[SEEN][of],
                    "impression": of + self._impressions,
                    "click": events.click[kept],
                }
                self._impressions += len(row)
                for name, file in opened.items():
                    file.write(np.ascontiguousarray(values[name], _COLUMNS[name]).data)
                for file, key in keys:
                    file.write(np.ascontiguousarray(key[row[of]]).data)

    def sums(self, requests: _Requests, path: Path) -> dict[Effect, Floats]:
        """(m, D + D (D + 1) / 2) of the m requests, in files that begin with a path."""
        found: dict[Effect, Floats] = {}
        for who, D in self.widths.items():
            out = np.memmap(f"{path}-{who}", np.float64, "w+", shape=(max(len(requests.request), 1), sums_width(D)))
            for by in _COUNTED_BY[who]:
                key = requests.keys(by)
                for rows, sums in self._before(by, D, key, requests.time):
                    out[rows] += np.where(key[rows, None] == 0, 0, sums if by == who else -sums)
            if len(_COUNTED_BY[who]) > 1:
                _clear_rounding(out, D)
            found[who] = out
        return found

    def _before(
        self, by: _By, D: int, key: NDArray[np.int64], time: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        events = self._by(by)
        events = events._replace(x=events.x[:, :D])
        if by != "user":
            return sums_before(events, key, time)
        weights = np.memmap(self._folder / "weights", np.float64, "w+", shape=max(self._impressions, 1))
        return filtered_before(events, key, time, self._variances[by], weights=weights)

    def _by(self, by: _By) -> EffectEvents:
        """Those of somebody known, sorted by key and time; memory holds both, and a block of the rest."""
        if by not in self._sorted:
            key = self._open(by, np.int64)
            order = np.lexsort((self._open("click", np.bool_), self._open("time", np.int64), key))
            order = order[key[order] != 0]
            kinds: dict[str, Any] = {"user": np.int64, **_COLUMNS}
            for name in EffectEvents._fields:
                column = key if name == "user" else self._open(name, kinds[name])
                column = column.reshape(len(key), -1) if name == "x" and len(key) else column
                with (self._folder / f"{by}-{name}").open("wb") as file:
                    for first in range(0, len(order), BLOCK):
                        file.write(np.ascontiguousarray(column[order[first : first + BLOCK]]).data)
            width = max(self.widths.values())
            opened = {name: self._open(f"{by}-{name}", kinds[name]) for name in EffectEvents._fields}
            self._sorted[by] = EffectEvents(**opened | {"x": opened["x"].reshape(len(order), width)})
        return self._sorted[by]

    def _open(self, name: str, dtype: Any) -> NDArray[Any]:
        path = self._folder / name
        return np.asarray(np.memmap(path, dtype, mode="r")) if path.stat().st_size else np.zeros(0, dtype)


def _clear_rounding(sums: Floats, D: int) -> None:
    """Of own events less themselves nothing is left."""
    for first in range(0, len(sums), BLOCK):
        block = sums[first : first + BLOCK]
        block[block[:, D] < NOTHING] = 0


def _copy_split(split: Path, out: Path, data: DataConfig, requests: _Requests, sums: dict[Effect, Floats]) -> dict[Effect, int]:
    """Returns of whom how many requests have a past."""
    out.mkdir()
    known: dict[Effect, int] = dict.fromkeys(sums, 0)
    columns = {column.name: column for column in sample_columns(data)}
    for path in sample_files(split):
        with readable(path), open_parquet(path) as file:
            schema = sample_schema(data).with_metadata(file.schema_arrow.metadata)
            with pq.ParquetWriter(out / path.name, schema, **WRITTEN) as writer:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    place = np.searchsorted(requests.request, table["request_id"].to_numpy())
                    for who, rows in sums.items():
                        known[who] += int(rows[place].any(axis=1).sum())
                        name = f"{who}_sums"
                        table = table.append_column(name, columns[name].kind.to_arrow(rows[place]))
                    writer.write_table(table.select(schema.names).cast(schema), row_group_size=max(len(table), 1))
    return known
