"""The plan of an epoch: which rows of which files make which batch, known before any data is read.

Only the files' footers and their `num_candidates` column are read. All else follows: the number of batches, and where
batch k begins, so that a resumed run seeks straight to it. What is left of an epoch can be dealt out anew to another number of
readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.data.parquet_files import open_parquet, readable
from prectr_torchrec.data.reader.watchdog import watched
from prectr_torchrec.data.schema import MANIFEST, check_schema, load_manifest


@dataclass(frozen=True)
class RowGroup:
    path: Path
    index: int
    first_row: int
    """Of the file."""
    num_candidates: NDArray[np.int32]
    """(rows,)."""


@dataclass(frozen=True)
class Segment:
    """Rows `start..stop` of a row group."""

    row_group: RowGroup
    start: int
    stop: int

    @property
    def num_candidates(self) -> NDArray[np.int32]:
        return self.row_group.num_candidates[self.start : self.stop]


@dataclass(frozen=True)
class Window:
    """Segments that are read together, and the order that their rows are taken in."""

    segments: tuple[Segment, ...]
    order: NDArray[np.int64] | None
    """Those of the segments' rows that are taken, in this order; None: all, as in the files."""

    @property
    def num_candidates(self) -> NDArray[np.int32]:
        counts = np.concatenate([segment.num_candidates for segment in self.segments])
        return counts if self.order is None else counts[self.order]

    def part(self, begin: int, end: int) -> Window:
        """Its rows `begin..end`, in its order."""
        order = np.arange(len(self.num_candidates)) if self.order is None else self.order
        return Window(self.segments, order[begin:end])


@dataclass(frozen=True)
class EpochPlan:
    """One reader's share of an epoch: its windows in sequence, and where each batch begins in the rows of all of them."""

    windows: tuple[Window, ...]
    window_starts: NDArray[np.int64]
    """(windows + 1,): the row that each window begins at."""
    batch_starts: NDArray[np.int64]
    """(batches + 1,): the row that each batch begins at."""

    @property
    def num_batches(self) -> int:
        return len(self.batch_starts) - 1


def list_row_groups(folder: Path, split: str, schema: pa.Schema, max_candidates: int, timeout: float = 300) -> list[RowGroup]:
    """The row groups of `folder/split/*.parquet`, in file order; a file that takes more than `timeout` seconds ends the process.

    Raises:
        ValueError: no such split, no file in it, other requests than were prepared, a file that is no Parquet or has another
            schema, a request with more than `max_candidates` candidates.
    """
    where = Path(folder) / split
    if not where.is_dir():
        found = ", ".join(sorted({path.parent.name for path in Path(folder).glob("*/*.parquet")}))
        raise ValueError(f"{folder}: there is no split {split!r} here (found: {found or 'none'}); run `prectr prepare`")
    paths = sorted(where.glob("*.parquet"))
    if not paths:
        raise ValueError(f"{where}: no .parquet file in this split; run `prectr prepare` again")
    groups = []
    for path in paths:
        with watched(timeout, path.__str__):
            groups += _row_groups_of(path, schema, max_candidates)
    _check_whole(where, groups)
    return groups


def _check_whole(where: Path, groups: list[RowGroup]) -> None:
    """Raises ValueError where a split of a prepared folder has not as many requests as were prepared."""
    manifest = load_manifest(where.parent) if (where.parent / MANIFEST).is_file() else {}
    prepared = manifest.get("splits", {}).get(where.name, {}).get("requests")
    there = sum(len(group.num_candidates) for group in groups)
    if prepared is not None and there != prepared:
        raise ValueError(
            f"{where}: {there:,} requests are there, {prepared:,} were prepared: a file is missing, or of another folder; run "
            "`prectr prepare` again"
        )


def plan_epoch(
    row_groups: list[RowGroup],
    *,
    part: int,
    parts: int,
    max_requests: int,
    max_candidates: int,
    row_groups_per_window: int,
    seed: tuple[int, int] | None,
    earlier: Sequence[Sequence[int]] = (),
) -> EpochPlan:
    """Plans what reader `part` of `parts` does in one epoch.

    Row groups are put in order, and each reader takes an equal run of the rows (two readers may share a row group), so that
    readers differ by one request at most. The rows, shuffled within windows, are cut greedily: a batch closes before it
    would exceed `max_requests` or `max_candidates`.

    Args:
        seed: run's seed and epoch, the same for all readers; None leaves the rows in the files' order.
        earlier: other numbers of readers that began this epoch, one after the other: of each, the batches that every reader had
            done. The rows left over are dealt out in equal runs, in the order in which those readers would have come to them.
    """
    limits = {"max_requests": max_requests, "max_candidates": max_candidates}
    share: Callable[[int, int], Iterable[Window]] = partial(_windows, row_groups, row_groups_per_window, seed)
    for done in earlier:
        left: list[Window] = []
        for reader, batches in enumerate(done):
            began = _plan_batches(share(reader, len(done)), **limits)
            left += _cut(began.windows, int(began.batch_starts[batches]), int(began.window_starts[-1]))
        share = partial(_runs, left)
    return _plan_batches(share(part, parts), **limits)


def _plan_batches(windows: Iterable[Window], max_requests: int, max_candidates: int) -> EpochPlan:
    windows = tuple(windows)
    counts = [window.num_candidates for window in windows]
    window_starts = np.cumsum([0] + [len(c) for c in counts])
    batch_starts = cut_batches(np.concatenate(counts) if counts else np.zeros(0, np.int32), max_requests, max_candidates)
    return EpochPlan(windows, window_starts, batch_starts)


def _windows(
    row_groups: list[RowGroup], row_groups_per_window: int, seed: tuple[int, int] | None, part: int, parts: int
) -> Iterator[Window]:
    """A reader's share of an epoch from its beginning."""
    groups = np.arange(len(row_groups))
    if seed is not None:
        groups = np.random.default_rng(seed).permutation(groups)
    segments = _share([row_groups[g] for g in groups], part, parts)
    for first in range(0, len(segments), row_groups_per_window):
        chosen = tuple(segments[first : first + row_groups_per_window])
        rows = sum(s.stop - s.start for s in chosen)
        order = None if seed is None else np.random.default_rng((*seed, part, first)).permutation(rows)
        yield Window(chosen, order)


def _runs(windows: list[Window], part: int, parts: int) -> Iterator[Window]:
    """A reader's share of what others left."""
    rows = sum(len(window.num_candidates) for window in windows)
    return _cut(windows, rows * part // parts, rows * (part + 1) // parts)


def _cut(windows: Iterable[Window], begin: int, end: int) -> Iterator[Window]:
    """The windows of the rows `begin..end` of all of them."""
    start = 0
    for window in windows:
        rows = len(window.num_candidates)
        first, last = max(begin - start, 0), min(end - start, rows)
        if first < last:
            yield window.part(first, last)
        start += rows


def cut_batches(num_candidates: NDArray[np.int32], max_requests: int, max_candidates: int) -> NDArray[np.int64]:
    """Greedy cut of consecutive rows: (batches + 1,) starts, the last one the number of rows."""
    rows = len(num_candidates)
    candidates_before = np.concatenate([[0], np.cumsum(num_candidates, dtype=np.int64)])
    # where a batch that begins at a row ends, for every row
    ends = np.searchsorted(candidates_before, candidates_before[:-1] + max_candidates, side="right") - 1
    ends = np.minimum(ends, np.arange(rows) + max_requests).tolist()
    starts = [0]
    while starts[-1] < rows:
        starts.append(ends[starts[-1]])
    return np.array(starts)


def turns_after(position: int, num_batches: list[int]) -> list[tuple[int, int]]:
    """How parts go on after `position` batches, when they are asked in turn and dry ones skipped.

    Args:
        num_batches: of each part.

    Returns:
        Every part and the number of its batches among the first `position`, the part whose turn is next first.
    """
    counts = np.array(num_batches)
    rounds = np.concatenate([np.arange(n) for n in counts])
    parts = np.repeat(np.arange(len(counts)), counts)
    turns = parts[np.lexsort((parts, rounds))]
    done = np.bincount(turns[:position], minlength=len(counts)).tolist()
    following = int(turns[position]) if position < len(turns) else 0
    return [(part, done[part]) for part in (*range(following, len(counts)), *range(following))]


def _share(row_groups: list[RowGroup], part: int, parts: int) -> list[Segment]:
    starts = np.cumsum([0] + [len(g.num_candidates) for g in row_groups])
    begin, end = (int(starts[-1]) * p // parts for p in (part, part + 1))
    return [
        Segment(group, max(begin - int(start), 0), min(end - int(start), len(group.num_candidates)))
        for group, start in zip(row_groups, starts, strict=False)
        if start < end and start + len(group.num_candidates) > begin
    ]


def _row_groups_of(path: Path, schema: pa.Schema, max_candidates: int) -> list[RowGroup]:
    with readable(path), open_parquet(path) as file:
        check_schema(file.schema_arrow, schema, path)
        counts = file.read(columns=["num_candidates"], use_threads=False)["num_candidates"].to_numpy().astype(np.int32)
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
    if len(counts) and counts.max() > max_candidates:
        row = int(np.argmax(counts > max_candidates))
        raise ValueError(
            f"{path}: row {row}: a request of {counts[row]} candidates does not fit into a batch of "
            f"{max_candidates}; set batch.candidates to at least {counts.max()}"
        )
    starts = np.cumsum([0, *sizes])
    return [RowGroup(path, g, int(starts[g]), counts[starts[g] : starts[g + 1]]) for g in range(len(sizes))]
