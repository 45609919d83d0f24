"""The predictions table: each rank writes a part, the parts become one Parquet file, the file is joined for measuring.

DuckDB merges and joins within a memory bound, spilling beside the predictions. Only what the measures need comes into memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prectr_torchrec.config import ModelConfig
from prectr_torchrec.data.raw import open_duckdb

Array = NDArray[Any]
Rows = dict[str, Array]
"""One scored batch, real rows only, n of them: request_id, item_id, user_id (n,) int64; click_probability (n,) float32, the
position held at its reference; logged_logit (n,) float32, at the logged position; relevance_probabilities (n, K) float32, the
tower's own; relevance, click (n,) float32, NaN where missing; the `part_columns` of the run (n,) float32. Other keys are not
kept."""

WEIGHTS = ("weight_own", "weight_peers", "weight_prior")
"""How much of a candidate's relevance preference is the own history, the peers, the prior."""
PARTS = ("levels_in_order", "effect_own", "effect_own_slope", "effect_peers", "effect_peers_slope", *WEIGHTS, "taste")

PART_SCHEMA = pa.schema(
    {
        "request_id": pa.int64(),
        "item_id": pa.int64(),
        "user_id": pa.int64(),
        "click_probability": pa.float32(),
        "click_probability_at_position": pa.float32(),
        "relevance_probabilities": pa.list_(pa.float32()),
        "relevance": pa.float32(),
        "click": pa.int8(),
    }
)
"""Of the parts, before the `part_columns`; the finished file has `query_id` too. `click_probability` holds the position at
its reference, `click_probability_at_position` takes the logged one; `relevance` and `click` are null where not known."""
ROW_GROUP = 65536


ORACLE_OPTIONAL = ("relevance", "exposed", "user_strictness")


@dataclass
class Oracle:
    """The truth joined to the predictions (n,), NaN where the oracle lacks the row or the column."""

    probability: Array
    relevance: Array
    exposed: Array
    """1 or 0, NaN unknown."""
    user_strictness: Array
    rows: int
    unmatched: int
    """Oracle rows without a prediction."""
    unmatched_exposed: int
    """The exposed ones among them."""


@dataclass
class Table:
    """What the measures need, in the file's order; n rows."""

    request_id: Array
    user_id: Array
    click_probability: Array
    click_probability_at_position: Array
    relevance: Array
    click: Array
    user_impressions: Array
    """Training impressions of the row's user, query and item."""
    query_impressions: Array
    item_impressions: Array
    has_training: bool
    """False: there is no training split, and the three counts above say nothing."""
    by_part: dict[str, Array]
    """Those of `PARTS` that the predictions have, (n,) each."""
    oracle: Oracle | None


@dataclass
class GradedPairs:
    """The distinct graded pairs of query and item; m of them."""

    query_id: Array
    relevance: Array
    relevance_probabilities: Array
    """(m, K)"""
    query_impressions: Array


def part_columns(model: ModelConfig) -> list[str]:
    """Those of `PARTS` that a run with this model predicts.

    `levels_in_order` is 1 where no level clicks less than the one below it. Effects and taste are in logits: what the own past,
    or the peers', changes in the click logit, as a mean over the candidate's own level distribution; its slope: at the highest
    level less at the lowest.
    """
    preference = model.preference
    there = {
        "levels_in_order": model.mixture,
        **dict.fromkeys(("effect_own", "effect_peers"), True),
        **dict.fromkeys(("effect_own_slope", "effect_peers_slope"), model.mixture),
        **dict.fromkeys(WEIGHTS, preference.own or preference.peers),
        "taste": preference.taste > 0,
    }
    return [name for name in PARTS if there[name]]


def parts_folder(predictions: Path) -> Path:
    """Where the ranks put their parts; must lie on a file system that all of them see."""
    return predictions.with_name(predictions.name + ".parts")


def write_part(rows: Iterable[Rows], predictions: Path, rank: int, parts: Sequence[str] = ()) -> None:
    """Streams one rank's rows to its part, which appears only when whole; `parts`: the run's `part_columns`."""
    schema = pa.unify_schemas([PART_SCHEMA, pa.schema({name: pa.float32() for name in parts})])
    path = parts_folder(predictions) / f"part-{rank:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        waiting: list[pa.RecordBatch] = []
        for batch in rows:
            waiting.append(_record_batch(batch, schema))
            if sum(len(b) for b in waiting) >= ROW_GROUP:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        writer.write_table(pa.Table.from_batches(waiting, schema))
    unfinished.replace(path)


def merge_parts(predictions: Path, split: Path, world_size: int, memory: str) -> int:
    """Makes one file of the parts, in the order of the samples, with `query_id` added, and removes the parts.

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
    unfinished = predictions.with_name(predictions.name + ".tmp")
    schema = pq.read_schema(parts[0]).insert(3, pa.field("query_id", pa.int64()))
    with connect(memory, folder) as db:
        ordered = db.sql(
            f"""
            WITH samples AS (
                SELECT request_id, query_id, filename, file_row_number, unnest(candidate_item_id) AS item_id,
                    generate_subscripts(candidate_item_id, 1) AS place
                FROM {parquet(sample_files(split), "filename = true", "file_row_number = true")}
            )
            SELECT {", ".join(schema.names)}
            FROM {parquet(parts)} JOIN samples USING (request_id, item_id)
            ORDER BY samples.filename, samples.file_row_number, place
            """
        )
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            for batch in ordered.to_arrow_reader(ROW_GROUP):
                writer.write_batch(batch.cast(schema))
        candidates = _scalar(db, f"SELECT coalesce(sum(len(candidate_item_id)), 0) FROM {parquet(sample_files(split))}")
    scored, merged = sum(pq.read_metadata(p).num_rows for p in parts), pq.read_metadata(unfinished).num_rows
    assert scored == merged == candidates, f"{split}: {candidates} candidates, {scored} rows scored, {merged} of them candidates"
    unfinished.replace(predictions)
    shutil.rmtree(folder)
    return merged


def oracle_columns(oracle: Path) -> list[str]:
    """The columns of an oracle file: request_id, item_id, probability and others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Parquet file or lacks one of the three.
    """
    if not oracle.is_file():
        raise FileNotFoundError(f"{oracle}: no such oracle file; it is a Parquet file of request_id, item_id, probability")
    try:
        found = pq.read_schema(oracle).names
    except pa.ArrowInvalid:
        raise ValueError(f"{oracle}: the oracle is not a Parquet file") from None
    for name in ("request_id", "item_id", "probability"):
        if name not in found:
            raise ValueError(f"{oracle}: column {name!r} is missing; found {', '.join(found)}")
    return list(found)


def load_table(predictions: Path, train: Path, oracle: Path | None, memory: str) -> Table:
    """Joins the predictions with the training impressions and the oracle.

    Args:
        predictions: the merged file.
        train: folder of the training samples; may be missing.
        oracle: Parquet with request_id, item_id, probability, and optionally exposed, relevance and user_strictness.
        memory: DuckDB's limit.

    Raises:
        FileNotFoundError: there is no such oracle file.
        ValueError: the oracle lacks a column or holds a row twice, or a prediction is not finite.
    """
    relation = parquet([predictions])
    parts = [name for name in PARTS if name in pq.read_schema(predictions).names]
    with connect(memory, predictions.parent) as db:
        _check_finite(db, predictions)
        counts = {who: _impressions(train, f"{who}_id") for who in ("user", "query", "item")}
        db.execute(f"CREATE VIEW oracle AS {_oracle_query(db, oracle)}")
        columns = db.execute(
            f"""
            SELECT request_id, user_id, click_probability, click_probability_at_position,
                coalesce(p.relevance, 'nan'::FLOAT) AS relevance,
                coalesce(click::FLOAT, 'nan'::FLOAT) AS click,
                coalesce(u.impressions, 0) AS user_impressions,
                coalesce(q.impressions, 0) AS query_impressions,
                coalesce(i.impressions, 0) AS item_impressions,
                {", ".join(f"coalesce(o.{name}, 'nan'::DOUBLE) AS oracle_{name}" for name in ("probability", *ORACLE_OPTIONAL))}
                {"".join(f", p.{name}" for name in parts)}
            FROM {relation} p
            LEFT JOIN ({counts["user"]}) u USING (user_id)
            LEFT JOIN ({counts["query"]}) q USING (query_id)
            LEFT JOIN ({counts["item"]}) i USING (item_id)
            LEFT JOIN oracle o USING (request_id, item_id)
            """
        ).fetchnumpy()
        columns = {name: np.asarray(column) for name, column in columns.items()}
        truth = {name: columns.pop(f"oracle_{name}") for name in ("probability", *ORACLE_OPTIONAL)}
        rows, unmatched, unmatched_exposed = _oracle_counts(db, relation)
        joined = Oracle(**truth, rows=rows, unmatched=unmatched, unmatched_exposed=unmatched_exposed) if oracle else None
    by_part = {name: columns.pop(name) for name in parts}
    return Table(**columns, has_training=train.is_dir(), by_part=by_part, oracle=joined)


def load_graded_pairs(predictions: Path, train: Path, memory: str) -> GradedPairs:
    """The graded pairs of query and item, each once, with the relevance tower's distribution."""
    with connect(memory, predictions.parent) as db:
        table = db.sql(
            f"""
            SELECT DISTINCT ON (query_id, item_id) query_id, relevance, relevance_probabilities,
                coalesce(q.impressions, 0) AS query_impressions
            FROM {parquet([predictions])} LEFT JOIN ({_impressions(train, "query_id")}) q USING (query_id)
            WHERE relevance IS NOT NULL AND relevance_probabilities IS NOT NULL
            ORDER BY query_id, item_id, request_id
            """
        ).to_arrow_table()
    lists = table["relevance_probabilities"].combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return GradedPairs(
        relevance_probabilities=values.reshape(len(table), -1 if len(table) else 0),
        **{name: table[name].to_numpy() for name in ("query_id", "relevance", "query_impressions")},
    )


def connect(memory: str, spill: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB that holds no more than `memory` and spills to files under `spill`."""
    return open_duckdb(memory_limit=memory, temp_directory=str(spill / ".spill"))


def parquet(files: list[Path], *options: str) -> str:
    """A DuckDB table function that reads these files as one."""
    names = ", ".join(map(_quoted, files))
    return f"read_parquet({', '.join([f'[{names}]', *options])})"


def sample_files(split: Path) -> list[Path]:
    """The sample files of a split in their order.

    Raises:
        ValueError: there is none; names the splits that are there.
    """
    files = sorted(split.glob("*.parquet"))
    if not files:
        there = sorted({p.parent.name for p in split.parent.glob("*/*.parquet")})
        raise ValueError(f"{split}: no samples of this split; {split.parent} has {', '.join(there) or 'none at all'}")
    return files


def _record_batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        if field.name == "relevance_probabilities":
            pi = rows[field.name]
            offsets = np.arange(len(pi) + 1, dtype=np.int32) * pi.shape[1]
            arrays.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(pi.ravel(), pa.float32())))
        elif field.name == "click_probability_at_position":
            arrays.append(pa.array(np.exp(-np.logaddexp(0, -rows["logged_logit"])), field.type))
        else:
            missing = np.isnan(rows[field.name]) if field.name in ("relevance", "click") else None
            arrays.append(pa.array(rows[field.name], mask=missing).cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _impressions(train: Path, column: str) -> str:
    """A query for the training impressions of each value of an id column; empty without a training split."""
    if not train.is_dir():
        return f"SELECT 0::BIGINT AS {column}, 0::BIGINT AS impressions WHERE false"
    samples = parquet(sample_files(train))
    if column == "item_id":
        samples, rows = f"(SELECT unnest(candidate_item_id) AS item_id FROM {samples})", "count(*)"
    else:
        rows = "sum(len(candidate_item_id))::BIGINT"
    return f"SELECT {column}, {rows} AS impressions FROM {samples} GROUP BY 1"


def _oracle_query(db: duckdb.DuckDBPyConnection, oracle: Path | None) -> str:
    if oracle is None:
        optional = ", ".join(f"0.0 AS {name}" for name in ("probability", *ORACLE_OPTIONAL))
        return f"SELECT 0 AS request_id, 0 AS item_id, {optional} WHERE false"
    relation, found = parquet([oracle]), oracle_columns(oracle)
    twice = db.execute(f"SELECT request_id, item_id FROM {relation} GROUP BY ALL HAVING count(*) > 1 LIMIT 1").fetchone()
    if twice:
        raise ValueError(f"{oracle}: request_id {twice[0]}, item_id {twice[1]} stands there more than once")
    optional = ", ".join(f"{n if n in found else 'NULL'}::DOUBLE AS {n}" for n in ORACLE_OPTIONAL)
    return f"SELECT request_id, item_id, probability::DOUBLE AS probability, {optional} FROM {relation}"


def _oracle_counts(db: duckdb.DuckDBPyConnection, relation: str) -> tuple[int, int, int]:
    unmatched = f"FROM oracle ANTI JOIN {relation} p USING (request_id, item_id)"
    counts = ("FROM oracle", unmatched, f"{unmatched} WHERE exposed = 1")
    rows, missing, missing_exposed = (_scalar(db, f"SELECT count(*) {which}") for which in counts)
    return rows, missing, missing_exposed


def _check_finite(db: duckdb.DuckDBPyConnection, predictions: Path) -> None:
    bad = f"FROM {parquet([predictions])} WHERE NOT coalesce(isfinite(click_probability), false)"
    first = db.execute(f"SELECT request_id, item_id {bad} LIMIT 1").fetchone()
    if first:
        rows = _scalar(db, f"SELECT count(*) {bad}")
        raise ValueError(f"{predictions}: click_probability is not finite in {rows} rows, first at request_id {first[0]}, "
                         f"item_id {first[1]}; the model has diverged")  # fmt: skip


def _scalar(db: duckdb.DuckDBPyConnection, query: str) -> int:
    row = db.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
