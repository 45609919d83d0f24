"""Streams the samples of a split as `SearchBatch`es of constant shape."""

from __future__ import annotations

import contextlib
import copy
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.reads import Reads
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.column_kinds import Text, Vector
from prectr_torchrec.data.item_vectors import ITEM_VECTORS, ItemVectors, item_vectors
from prectr_torchrec.data.parquet_files import open_parquet, readable
from prectr_torchrec.data.reader.assemble import BatchArrays, BatchBuilder, Piece, PreparedRows
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.data.reader.epoch_plan import EpochPlan, RowGroup, Window, list_row_groups, plan_epoch, turns_after
from prectr_torchrec.data.reader.flat import to_columns
from prectr_torchrec.data.reader.origin import SampleRow, rows_of_batch
from prectr_torchrec.data.reader.watchdog import watched_items
from prectr_torchrec.data.schema import PREDICTED_KEY, sample_schema
from prectr_torchrec.system.orphans import die_with_parent


class SearchReader:
    """The batches of one rank, epoch after epoch.

    Every request of the split is in exactly one batch of one rank, whatever the numbers of ranks and workers. Which one is
    known before anything is read (`epoch_plan.py`), so that the number of batches is exact and a resumed reader goes on where it
    stopped without reading what it skips. The batches do not depend on what was read before them.

    Args:
        config: `data`, `text`, `batch`, `tables`, `features` and `train.reader_timeout` are used.
        folder: a prepared folder; the split is the sub-folder `split`.
        tokenizer: a folder in Hugging Face layout.
        shuffle: permutes row groups, and rows within windows of `batch.shuffle_row_groups`, anew each epoch; else the
            files' order is kept.
        seed: of the shuffle, the same on all ranks.
        candidates: C in place of `batch.candidates`.
        reads: what the ranker reads besides the features; None: as of `config.reads()`.
        prepared: the folder with the vectors of items, where it is another one.

    Raises:
        ValueError: a missing or empty split, a file that cannot be used, a request that does not fit into a batch.

    Example::

        reader = SearchReader(config, prepared, "train", prepared / TOKENIZER, rank=rank, world_size=world_size, shuffle=True)
        for epoch in range(2):
            for batch in reader.epoch(epoch, num_batches=agree_on_batches(reader.num_batches(epoch))):
                ...
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        split: str,
        tokenizer: Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        candidates: int | None = None,
        reads: Reads | None = None,
        prepared: Path | None = None,
    ) -> None:
        assert 0 <= rank < world_size
        self._batch = config.batch.model_copy(update={"candidates": candidates} if candidates else {})
        self._rank, self._world_size = rank, world_size
        self._seed = seed if shuffle else None
        self._timeout = config.train.reader_timeout
        self._row_groups = list_row_groups(Path(folder), split, sample_schema(config.data), self._batch.candidates, self._timeout)
        self._numbers = {(group.path, group.index): number for number, group in enumerate(self._row_groups)}
        self._reading = torch.full((max(1, self._batch.workers),), -1)  # row group that each reader process is at
        reads = config.reads() if reads is None else reads
        self._builder = BatchBuilder(
            config.data,
            config.text,
            config.tables,
            config.features,
            Path(tokenizer),
            self._batch.requests,
            self._batch.candidates,
            reads=reads,
            vectors=_item_vectors(config.data, reads, Path(prepared or folder)),
            predicted=PREDICTED_KEY in (pq.read_schema(self._row_groups[0].path).metadata or {}),
        )
        self._sampled = [column for column in self._builder.columns if not column.gathered]
        texts = (column for column in self._builder.columns if isinstance(column.kind, Text))
        self._texts = [f"{column.name}.list.element" if column.listed else column.name for column in texts]
        self._files: OrderedDict[Path, pq.ParquetFile] = OrderedDict()
        self._plans: dict[tuple[int, int], EpochPlan] = {}
        self._earlier: dict[int, Sequence[Sequence[int]]] = {}
        self._workers: _Workers | None = None

    @property
    def columns(self) -> list[str]:
        """The sample columns that are read."""
        return [column.name for column in self._sampled]

    @property
    def num_requests(self) -> int:
        """Requests of the split, on all ranks."""
        return sum(len(group.num_candidates) for group in self._row_groups)

    def num_batches(self, epoch: int) -> int:
        """Batches of this rank in an epoch."""
        return sum(self._plan(epoch, part).num_batches for part in self._parts())

    def epoch(self, epoch: int, start: int = 0, num_batches: int | None = None) -> Iterator[SearchBatch]:
        """The batches of an epoch.

        Args:
            start: batches to skip, without reading them.
            num_batches: number of the epoch's batches, the skipped ones included; padded with empty ones up to it.
        """
        remaining = (self.num_batches(epoch) if num_batches is None else num_batches) - start
        batches = self._from_workers(epoch, start) if self._batch.workers else self._read(epoch, self._rank, start)
        empty = (self._builder.build_arrays([]) for _ in repeat(None))
        wanted = watched_items(islice(chain(batches, empty), max(remaining, 0)), self._timeout, self._whereabouts)
        for arrays in wanted:
            batch = self._builder.to_batch(arrays)
            yield batch.pin_memory() if torch.cuda.is_initialized() else batch

    def rows(self, epoch: int, batch: int) -> list[SampleRow]:
        """File and row of each request of a batch of this rank, in the batch's order; none for an empty batch."""
        plans = [self._plan(epoch, part) for part in self._parts()]
        if batch >= sum(plan.num_batches for plan in plans):
            return []
        worker, done = turns_after(batch, [plan.num_batches for plan in plans])[0]
        return rows_of_batch(plans[worker], done)

    def resume_after(self, epoch: int, earlier: Sequence[Sequence[int]]) -> None:
        """Deals out anew what other numbers of ranks left of an epoch; to be called before it is read.

        Args:
            earlier: as of `plan_epoch`; the last one of it from `batches_done`.
        """
        changed = {epoch: earlier} if earlier else {}
        if changed != self._earlier:
            self._earlier = changed
            self._plans.clear()
            self._workers = None  # they hold the old one

    def batches_done(self, epoch: int, batches: int, world_size: int) -> list[int]:
        """The batches of each share of `world_size` ranks' workers when each rank has had `batches` of this epoch."""
        each = max(1, self._batch.workers)
        done = []
        for rank in range(world_size):
            counts = [self._plan_of(epoch, part, world_size * each).num_batches for part in range(rank * each, (rank + 1) * each)]
            done += [count for _, count in sorted(turns_after(min(batches, sum(counts)), counts))]
        return done

    def _parts(self) -> range:
        """This rank's shares among those of all ranks and workers."""
        each = max(1, self._batch.workers)
        return range(self._rank * each, (self._rank + 1) * each)

    def _plan(self, epoch: int, part: int) -> EpochPlan:
        if any(planned != epoch for planned, _ in self._plans):
            self._plans.clear()
        if (epoch, part) not in self._plans:
            self._plans[epoch, part] = self._plan_of(epoch, part, self._world_size * max(1, self._batch.workers))
        return self._plans[epoch, part]

    def _plan_of(self, epoch: int, part: int, parts: int) -> EpochPlan:
        return plan_epoch(
            self._row_groups,
            part=part,
            parts=parts,
            max_requests=self._batch.requests,
            max_candidates=self._batch.candidates,
            row_groups_per_window=self._batch.shuffle_row_groups,
            seed=None if self._seed is None else (self._seed, epoch),
            earlier=self._earlier.get(epoch, ()),
        )

    def _from_workers(self, epoch: int, start: int) -> Iterator[BatchArrays]:
        parts = self._parts()
        turns = turns_after(start, [self._plan(epoch, part).num_batches for part in parts])
        if self._workers is None:
            self._workers = _Workers(self, len(parts))
        return self._workers.read([(epoch, parts[worker], done) for worker, done in turns])

    def _read(self, epoch: int, part: int, start: int) -> Iterator[BatchArrays]:
        """The batches of one share from batch `start` on."""
        plan = self._plan(epoch, part)
        if start >= plan.num_batches:
            return
        loaded: list[tuple[int, PreparedRows]] = []  # first row and rows of the windows that the next batch may need
        next_window = int(plan.window_starts.searchsorted(plan.batch_starts[start], side="right")) - 1
        for begin, end in zip(plan.batch_starts[start:-1].tolist(), plan.batch_starts[start + 1 :].tolist(), strict=True):
            loaded = [(first, rows) for first, rows in loaded if first + rows.num_rows > begin]
            while plan.window_starts[next_window] < end:
                self._builder.trim([rows for _, rows in loaded])
                loaded.append((int(plan.window_starts[next_window]), self._load(plan.windows[next_window])))
                next_window += 1
            pieces: list[Piece] = [(rows, max(begin - first, 0), min(end - first, rows.num_rows)) for first, rows in loaded]
            yield self._builder.build_arrays(pieces)

    def _load(self, window: Window) -> PreparedRows:
        tables = []
        for segment in window.segments:
            group = segment.row_group
            with self._at(group):
                table = self._open(group.path).read_row_group(group.index, columns=self.columns, use_threads=False)
            tables.append(table.slice(segment.start, segment.stop - segment.start))
        sources = [f"{s.row_group.path}, row group {s.row_group.index}" for s in window.segments]
        try:
            columns = to_columns(tables, sources, self._sampled, limits=self._builder.limits, order=window.order)
        except IndexError as error:  # an index into texts that are not there, which no page's checksum covers
            raise ValueError(f"{', '.join(sources)}: damaged: {error}") from error
        if not np.array_equal(np.diff(columns.offsets["candidate"]), window.num_candidates):
            raise ValueError(f"{', '.join(sources)}: num_candidates is not the length of the candidate_* lists")
        return self._builder.prepare(columns)

    @contextlib.contextmanager
    def _at(self, group: RowGroup) -> Iterator[None]:
        """Lets be seen from outside which row group is being read, and names it if it cannot be."""
        worker = getattr(get_worker_info(), "id", 0)
        self._reading[worker] = self._numbers[group.path, group.index]
        with readable(f"{group.path}, row group {group.index}"):
            yield
        self._reading[worker] = -1

    def _whereabouts(self) -> str:
        at = [self._row_groups[number] for number in self._reading.tolist() if number >= 0]
        files = ", ".join(f"{group.path}, row group {group.index}" for group in at)
        return f"the reader of rank {self._rank}, at {files or 'a batch whose files are read'}"

    def _open(self, path: Path) -> pq.ParquetFile:
        """The files of the last windows stay open: a footer is slow to parse."""
        if path not in self._files:
            self._files[path] = open_parquet(path, read_dictionary=self._texts)
            if len(self._files) > 2 * self._batch.shuffle_row_groups:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]


def _item_vectors(data: DataConfig, reads: Reads, folder: Path) -> ItemVectors | None:
    """Of a prepared folder, where a ranker reads them."""
    declared = Vector.declared_as in reads.declared and bool(item_vectors(data))
    return ItemVectors.of(data, folder / ITEM_VECTORS) if declared else None


class _Workers:
    """The worker processes of a rank; `DataLoader` asks them in turn and skips dry ones.

    They stay from epoch to epoch, and keep their token caches; where each begins is told through shared memory. They end
    with the reader: nothing here refers back to it.
    """

    def __init__(self, reader: SearchReader, num_workers: int) -> None:
        self._turns = torch.zeros(num_workers, 3, dtype=torch.int64).share_memory_()
        reader._reading.share_memory_()
        share = _WorkerShare(reader, self._turns)
        self._loader = DataLoader(
            share,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_as_is,
            persistent_workers=True,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # of its own: it would else draw from the one that dropout draws from
            multiprocessing_context=_start_method(),
        )

    def read(self, turns: list[tuple[int, int, int]]) -> Iterator[BatchArrays]:
        """All batches of the workers' shares; a turn is a worker's epoch, share and first batch."""
        self._turns[:] = torch.tensor(turns)
        return iter(self._loader)


class _WorkerShare(IterableDataset[BatchArrays]):
    """What each worker process reads."""

    def __init__(self, reader: SearchReader, turns: Tensor) -> None:
        self._reader, self._turns = copy.copy(reader), turns
        self._reader._files = OrderedDict()

    def __iter__(self) -> Iterator[BatchArrays]:
        info = get_worker_info()
        assert info is not None
        return self._reader._read(*self._turns[info.id].tolist())


def _start_method() -> str | None:
    """NCCL, which a rank on a GPU has running by now, does not live through a fork."""
    return "spawn" if torch.cuda.is_initialized() else None


def _begin(worker: int) -> None:
    """Of a worker process, in a group of its own: what asks the job to stop is for the ranks, and would kill it."""
    die_with_parent()
    os.setpgrp()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _as_is(arrays: Any) -> Any:
    return arrays


def agree_on_batches(num_batches: int) -> int:
    """The most batches that any rank has, so that all ranks stop together; ranks with fewer feed empty ones.

    Collective over the default process group; without one, the number itself.
    """
    if not dist.is_initialized():
        return num_batches
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    most = torch.tensor(num_batches, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)
