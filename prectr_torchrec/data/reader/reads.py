"""Which views of the samples a batch has: those that a ranker reads, and those that learning and measuring need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prectr_torchrec.config.reads import Reads
from prectr_torchrec.data.column_kinds import Label, Text, View
from prectr_torchrec.data.columns import LISTS, Column, Family
from prectr_torchrec.data.counted_kinds import SampleWeight
from prectr_torchrec.data.reader.packing import Entry

SEQUENCES: tuple[Family, ...] = LISTS[:2]
HAPPENED = ("level", "click", "position", "age", "predicted")
"""What rankers read of past events."""
_JUDGED = ("position", "relevance", "level", "predicted")
"""What losses and measures read of candidates, whatever the ranker reads."""
_IDENTITIES = ("request_id", "user_id", "candidate_item_id")
"""Ids that scores are handed out with, as the samples have them."""


def text_columns(columns: Sequence[Column], reads: Reads) -> dict[str, Column]:
    """The columns of the texts that a ranker reads, by the text's name."""
    texts = (column for column in columns if isinstance(column.kind, Text))
    named = {column.name if column.family in SEQUENCES else column.key: column for column in texts}
    return {name: column for name, column in named.items() if name in reads.texts or _declared(column) in reads.declared}


def batch_entries(columns: Sequence[Column], reads: Reads, families: Sequence[Family], *, predicted: bool) -> list[Entry]:
    """The views of a batch, those of columns first.

    Args:
        columns: of samples.
        reads: of the ranker.
        families: the sequences that the batch has.
        predicted: whether the samples have predicted levels.
    """
    entries: list[Entry] = []
    for column in columns:
        wanted = {"request": reads.request, "candidate": {*reads.candidate, *_JUDGED}}.get(column.family, set(HAPPENED))
        if column.family in SEQUENCES and column.family not in families:
            continue
        there = predicted or column.key != "predicted"
        for key, view in column.kind.views(column.key).items():
            if column.name in _IDENTITIES or isinstance(column.kind, Label | SampleWeight):
                entries.append(Entry(column.family, key, view, column))
            elif key in wanted or _declared(column) in reads.declared or (column.counts and "label" in reads.declared):
                entries.append(Entry(column.family, key, view, column if there else None, feature=True))
    integer, number = View(np.int64), View(np.float32)
    entries += [Entry("request", f"{family}_lengths", integer) for family in families]
    entries.append(Entry("request", "request_weight", number))
    entries += [Entry("candidate", "weight", number), Entry("candidate", "request", integer)]
    entries += [Entry(column.family, f"{column.key}_index", integer) for column in text_columns(columns, reads).values()]
    return sorted(entries, key=lambda entry: entry.column is None)


def _declared(column: Column) -> str:
    """What `Reads.declared` calls the kind of a column of `data.columns`."""
    past = column.family in SEQUENCES and column.declared_as
    return f"{column.family}_{column.declared_as}" if past else column.declared_as
