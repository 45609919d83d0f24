"""From scored rows to the predictions file: each rank writes a part, the parts become one Parquet file in the samples' order."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prectr_torchrec.data.log_ids import COLUMNS as LOG_IDS
from prectr_torchrec.data.log_ids import LogIds
from prectr_torchrec.data.parquet_files import WRITTEN
from prectr_torchrec.data.raw.files import scan_parquet
from prectr_torchrec.evaluation.predictions import Rows, connect, sample_files, scalar
from prectr_torchrec.metrics import sigmoid
from prectr_torchrec.runs.workspace import replacing

PART_SCHEMA = pa.schema(
    {
        "request_id": pa.int64(),
        "item_id": pa.int64(),
        "user_id": pa.int64(),
        "click_probability": pa.float32(),
        "click_probability_at_position": pa.float32(),
        "relevance": pa.float32(),
        "click": pa.int8(),
    }
)
"""Of the files of ranks, before the `label_columns` and `part_columns`. `click_probability` holds the position at its reference,
`click_probability_at_position` takes the logged one; `relevance` and `click` are null where not known."""
FROM_SAMPLES = {
    "query_id": ("query_id", pa.int64()),
    "position": ("unnest(candidate_position)", pa.int32()),
    "user_events": ("user_events", pa.int32()),
    "query_events": ("query_events", pa.int32()),
    "item_shown": ("unnest(candidate_shown)", pa.float32()),
}
"""Columns that the finished file takes from the samples: the logged position, 0 where there is none, and the past that the
request has: impressions of its user, of its query to others, and of the item."""
ROW_GROUP = 65536


def parts_folder(predictions: Path) -> Path:
    """Where the ranks put their parts; must lie on a file system that all of them see."""
    return predictions.with_name(predictions.name + ".parts")


def write_part(rows: Iterable[Rows], predictions: Path, rank: int, parts: Sequence[pa.Field] = ()) -> None:
    """Streams one rank's rows to its part, which appears only when whole; `parts`: its further columns."""
    schema = pa.schema([*PART_SCHEMA, *parts])
    path = parts_folder(predictions) / f"part-{rank:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished, pq.ParquetWriter(unfinished, schema, **WRITTEN) as writer:
        waiting: list[pa.RecordBatch] = []
        for batch in rows:
            waiting.append(_record_batch(batch, schema))
            if sum(len(b) for b in waiting) >= ROW_GROUP:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        writer.write_table(pa.Table.from_batches(waiting, schema))


def merge_parts(predictions: Path, split: Path, world_size: int, memory: str) -> int:
    """Makes one file of the parts, in the order of the samples, with `FROM_SAMPLES` added and ids as the log writes them, and
    removes the parts.

    Args:
        predictions: the file to write; it appears only when whole.
        split: folder of the sample files that were scored.
        world_size: number of parts.
        memory: DuckDB's limit, as in "2GB".

    Returns:
        The number of rows.

    Raises:
        ValueError: a rank's part is not there.
    """
    folder = parts_folder(predictions)
    parts = [folder / f"part-{rank:05d}.parquet" for rank in range(world_size)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ValueError(f"{folder}: {', '.join(missing)} not there; give --predictions on a file system that all ranks share")
    schema, selected, joined = LogIds.of_split(split).restored(_with_samples(pq.read_schema(parts[0])), LOG_IDS)
    from_samples = ", ".join(f"{expression} AS {name}" for name, (expression, _) in FROM_SAMPLES.items())
    with replacing(predictions) as unfinished, connect(memory, folder, folder, split) as db:
        ordered = db.sql(
            f"""
            WITH samples AS (
                SELECT request_id, {from_samples}, filename, file_row_number, unnest(candidate_item_id) AS item_id,
                    generate_subscripts(candidate_item_id, 1) AS place
                FROM {scan_parquet(sample_files(split), "filename = true", "file_row_number = true")}
            )
            SELECT {selected}
            FROM {scan_parquet(parts)} JOIN samples USING (request_id, item_id) {joined}
            ORDER BY samples.filename, samples.file_row_number, place
            """
        )
        with pq.ParquetWriter(unfinished, schema, **WRITTEN) as writer:
            for batch in ordered.to_arrow_reader(ROW_GROUP):
                writer.write_batch(batch.cast(schema))
        candidates = scalar(db, f"SELECT coalesce(sum(len(candidate_item_id)), 0) FROM {scan_parquet(sample_files(split))}")
        scored, merged = sum(pq.read_metadata(p).num_rows for p in parts), pq.read_metadata(unfinished).num_rows
        whole = scored == merged == candidates
        assert whole, f"{split}: {candidates} candidates, {scored} rows scored, {merged} of them candidates"
    shutil.rmtree(folder)
    return merged


def _record_batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        if pa.types.is_list(field.type):
            values = rows[field.name]
            offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
            arrays.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel(), pa.float32())))
        elif field.name == "click_probability_at_position":
            arrays.append(pa.array(sigmoid(rows["logged_logit"]), field.type))
        else:
            missing = np.isnan(rows[field.name]) if field.name == "relevance" or field.type == pa.int8() else None
            arrays.append(pa.array(rows[field.name], mask=missing).cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _with_samples(schema: pa.Schema) -> pa.Schema:
    """A part's schema with the samples' columns: `query_id` beside the other ids, the rest behind `click`."""
    first, *others = [pa.field(name, kind) for name, (_, kind) in FROM_SAMPLES.items()]
    fields = list(schema.insert(schema.get_field_index("user_id") + 1, first))
    behind = [field.name for field in fields].index("click") + 1
    return pa.schema([*fields[:behind], *others, *fields[behind:]])
