"""Where the rows of a batch came from, worked out from the plan when somebody asks: it costs a batch nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from prectr_torchrec.data.reader.epoch_plan import EpochPlan

SampleRow = tuple[Path, int]
"""A sample file and a row of it."""


def rows_of_batch(plan: EpochPlan, batch: int) -> list[SampleRow]:
    """File and row of each request of a plan's batch, in the batch's order."""
    begin, end = plan.batch_starts[batch : batch + 2].tolist()
    rows: list[SampleRow] = []
    for window, start in zip(plan.windows, plan.window_starts.tolist(), strict=False):
        stop = start + len(window.num_candidates)
        if stop <= begin or start >= end:
            continue
        of_window = [
            (segment.row_group.path, segment.row_group.first_row + row)
            for segment in window.segments
            for row in range(segment.start, segment.stop)
        ]
        in_order = of_window if window.order is None else [of_window[place] for place in window.order.tolist()]
        rows += in_order[max(begin - start, 0) : end - start]
    return rows


def format_rows(rows: Sequence[SampleRow]) -> str:
    """As `DIR/part-00000.parquet rows 3, 17-20; DIR/part-00002.parquet row 5`; rows are counted from 0."""
    files = []
    for path, of_file in itertools.groupby(sorted(rows), key=lambda row: row[0]):
        numbers = sorted({number for _, number in of_file})
        runs = [[number for _, number in run] for _, run in itertools.groupby(enumerate(numbers), key=lambda at: at[1] - at[0])]
        spans = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
        files.append(f"{path} row{'s' if len(numbers) > 1 else ''} {spans}")
    return "; ".join(files)
