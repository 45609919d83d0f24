"""`prectr score`: sample files in, scores out, shard by shard on several processes; a killed job goes on where it was."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pyarrow.parquet as pq
import torch

from prectr_torchrec.data.item_vectors import ITEM_VECTORS, ItemVectors
from prectr_torchrec.data.log_ids import LogIds
from prectr_torchrec.data.parquet_files import WRITTEN, open_parquet, readable
from prectr_torchrec.data.raw.files import scan_parquet
from prectr_torchrec.data.raw.source import open_duckdb
from prectr_torchrec.data.schema import check_findings, check_schema, sample_schema
from prectr_torchrec.distributed.process import quiet_libraries
from prectr_torchrec.runs.workspace import build_if_absent, replacing
from prectr_torchrec.serving.export import read_about
from prectr_torchrec.serving.ranker import Ranker
from prectr_torchrec.system.locks import writes_file
from prectr_torchrec.system.orphans import die_with_parent
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.system.plain_files import read_json
from prectr_torchrec.system.progress import counted

_SETTINGS = "settings.json"
_worker: Ranker | None = None
"""Of a process of the pool."""


@only_local
@writes_file("out")
def score_files(model: Path, data: Path, out: Path, *, nproc: int = 1) -> int:
    """Scores every candidate of sample files.

    Each finished shard waits in `OUT.parts`, and a job that is run again scores what is missing; at the end the shards become
    one file, in the order of their names.

    Args:
        model: exported folder.
        data: a folder of sample files (`*.parquet`), such as a split of a prepared folder.
        out: Parquet file to write: request_id, item_id, click_probability and, of rankers with a relevance tower,
            relevance_probabilities; ids as the log writes them.
        nproc: processes; each loads the ranker, tables on disk are shared.

    Returns:
        The number of rows.

    Raises:
        FileNotFoundError: no exported ranker, or no samples.
        ValueError: a file that cannot be scored, or an unfinished job of another model or other samples at `out`.
    """
    shards = sorted(data.glob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{data}: no *.parquet file here; name a folder of samples, such as prepared/test")
    parts, about = out.with_name(f"{out.name}.parts"), read_about(model)
    check_findings(data.absolute().parent, model, about)
    _open_output(
        parts,
        out,
        {
            "model": about,
            "shards": {shard.name: [shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards},
        },
    )
    missing = [shard for shard in shards if not (parts / shard.name).exists()]
    if missing:
        spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        workers = min(nproc, len(missing))
        with ProcessPoolExecutor(
            workers, mp_context=spawn, initializer=_start, initargs=(model, data.absolute(), workers)
        ) as pool:
            try:
                started = [pool.submit(_score_shard, shard, parts / shard.name) for shard in missing]
                for done in counted(as_completed(started), "scoring", "files", total=len(started)):
                    done.result()
            except BaseException:
                for process in list(pool._processes.values()):  # what they have not finished is scored again
                    process.kill()
                raise
    rows = _merge([parts / shard.name for shard in shards], out, LogIds.of_split(data))
    shutil.rmtree(parts)
    return rows


def _open_output(parts: Path, out: Path, settings: dict[str, object]) -> None:
    begun = parts / _SETTINGS
    parts.mkdir(parents=True, exist_ok=True)
    build_if_absent(begun, lambda path: path.write_text(json.dumps(settings), encoding="utf-8"))
    if read_json(begun) != settings:
        raise ValueError(
            f"{parts} is of an unfinished job with another model or other samples; remove it, or choose another --out than {out}"
        )


def _start(model: Path, samples: Path, workers: int) -> None:
    """Loads the ranker; vectors of items are those of the prepared folder that has the samples, where it has such."""
    global _worker
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is the command's, which ends the pool
    quiet_libraries()
    if workers > 1:
        torch.set_num_threads(1)
    ranker = Ranker.load(model)
    own = samples.parent / ITEM_VECTORS
    _worker = ranker.with_vectors(ItemVectors.of(ranker.config.data, own)) if own.is_dir() else ranker


def _score_shard(shard: Path, part: Path) -> None:
    assert _worker is not None
    with readable(shard):
        opened = open_parquet(shard)
    with opened as file, replacing(part) as path:
        there = [name for name in _worker.columns if name in file.schema_arrow.names]
        check_schema(file.schema_arrow, sample_schema(_worker.config.data), shard)
        writer = None
        try:
            for group in range(max(file.num_row_groups, 1)):
                with readable(shard):
                    samples = file.read_row_group(group, columns=there) if file.num_row_groups else file.read(columns=there)
                try:
                    scores = _worker.score(samples)
                except ValueError as error:
                    raise ValueError(f"{shard}, row group {group}: {error}") from None
                writer = writer or pq.ParquetWriter(path, scores.schema, **WRITTEN)
                writer.write_table(scores)
        finally:
            if writer is not None:
                writer.close()


def _merge(parts: Sequence[Path], out: Path, ids: LogIds) -> int:
    """Makes one file of the parts, in their order, with the log's ids; returns its rows."""
    schema, selected, joined = ids.restored(pq.read_schema(parts[0]), ("request_id", "item_id"))
    rows = 0
    with (
        replacing(out) as path,
        open_duckdb(temp_directory=str(parts[0].parent / "spill")) as con,
        pq.ParquetWriter(path, schema, **WRITTEN) as writer,
    ):
        for part in parts:
            rows_of_part = scan_parquet([part], "file_row_number = true")
            query = f"SELECT {selected} FROM {rows_of_part} p {joined} ORDER BY p.file_row_number"
            for batch in con.sql(query).to_arrow_reader(2**16):
                writer.write_batch(batch.cast(schema))
                rows += batch.num_rows
    return rows
