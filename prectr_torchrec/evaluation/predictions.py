"""The predictions file, joined with the oracle and with what was trained on, for measuring.

DuckDB joins within a memory bound, spilling beside the predictions. Only what the measures need comes into memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prectr_torchrec.config.data import ZeroId
from prectr_torchrec.config.score import Worth, multiplied
from prectr_torchrec.data.hashing import normalised_sql
from prectr_torchrec.data.log_ids import our_id_sql
from prectr_torchrec.data.parquet_files import readable
from prectr_torchrec.data.raw.files import scan_parquet
from prectr_torchrec.data.raw.source import open_duckdb, quote
from prectr_torchrec.evaluation.label_columns import LabelColumns, Worths, each_worth, labels_of, worth_columns, worth_of
from prectr_torchrec.evaluation.part_columns import meanings

Array = NDArray[Any]
Rows = dict[str, Array]
"""One scored batch, real rows only, n of them: request_id, item_id, user_id (n,) int64; click_probability (n,) float32, the
position held at its reference; logged_logit (n,) float32, at the logged position; relevance, click (n,) float32, NaN where
missing; the `label_columns` and `part_columns` of the ranker (n,) or (n, k) float32. Other keys are not kept."""

LEVELS = "relevance_probabilities"
"""The column of rankers that have a relevance tower: its own probabilities of the levels, before any known grade."""

HIDDEN = "-grades-hidden"
"""After the split in the names of files of what was scored without the candidates' grades."""
ORACLE_OPTIONAL = ("relevance", "exposed", "examination", "user_strictness")


@dataclass
class Oracle:
    """The truth joined to the predictions (n,), NaN where the oracle lacks the row or the column."""

    probability: Array
    relevance: Array
    exposed: Array
    """1 or 0, NaN unknown."""
    examination: Array
    """How likely the row was seen where it was shown, NaN where it was not."""
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
    score: Array
    """What ranks: the click probability, or what the labels are expected to be worth."""
    click_probability: Array
    click_probability_at_position: Array
    relevance: Array
    click: Array
    position: Array
    """Logged position from 1, 0 where there is none."""
    user_events: Array
    """The past that the row's request has: impressions of its user, ..."""
    query_events: Array
    """... of its query to other users, ..."""
    item_shown: Array
    """... and of the row's item to anyone."""
    by_part: dict[str, Array]
    """The `part_columns` that the predictions have, but for lists; (n,) each."""
    meanings: dict[str, str]
    """What these columns say, in words."""
    oracle: Oracle | None
    labels: dict[str, LabelColumns]
    """Those beside the click."""
    worth: dict[str, Worth]
    """What the labels are worth in the score."""
    by_candidate: dict[str, Array]
    """Label -> (n,) what it is worth, where that is a number of the candidate, NaN where it is missing."""

    def worths(self) -> Worths:
        """What the labels are worth to each candidate."""
        return each_worth(self.worth, {column: self.by_candidate[label] for label, column in multiplied(self.worth).items()})


@dataclass
class GradedPairs:
    """The distinct graded pairs of query and item; m of them."""

    query_id: Array
    relevance: Array
    relevance_probabilities: Array
    """(m, K)"""
    trained_on: Array
    """The pair has a grade in the training samples: among their judgments or their impressions."""
    known_query: Array
    """The query's text is in the training samples: among their judgments or their impressions."""


def oracle_columns(oracle: Path) -> list[str]:
    """The columns of an oracle file: request_id, item_id, probability and others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Parquet file or lacks one of the three.
    """
    if not oracle.is_file():
        raise FileNotFoundError(f"{oracle}: no such oracle file; it is a Parquet file of request_id, item_id, probability")
    with readable(oracle):
        found = pq.read_schema(oracle).names
    for name in ("request_id", "item_id", "probability"):
        if name not in found:
            raise ValueError(f"{oracle}: column {name!r} is missing; found {', '.join(found)}")
    return list(found)


def load_table(predictions: Path, oracle: Path | None, memory: str, zero: ZeroId = "none") -> Table:
    """Joins the predictions with the oracle; both have ids as the log writes them, the table has ours.

    Args:
        predictions: the merged file.
        oracle: Parquet with request_id, item_id, probability, and optionally those of `ORACLE_OPTIONAL`.
        memory: DuckDB's limit.
        zero: what 0 is in the log.

    Raises:
        FileNotFoundError: there is no such oracle file.
        ValueError: the oracle lacks a column or holds a row twice, or a prediction is not finite.
    """
    relation = scan_parquet([predictions])
    schema = pq.read_schema(predictions)
    parts, labels = meanings(schema), labels_of(schema)
    worth = worth_of(schema)
    of_worth = worth_columns(worth)
    of_labels = [*(name for names in labels.values() for name in names), *of_worth.values()]
    ours = _our_ids(predictions, ("request_id", "user_id"), zero)
    with connect(memory, predictions.parent, predictions, oracle) as db:
        _check_finite(db, predictions)
        db.execute(f"CREATE VIEW oracle AS {_oracle_query(db, oracle, predictions)}")
        columns = db.execute(
            f"""
            SELECT {ours["request_id"]} AS request_id, {ours["user_id"]} AS user_id,
                {"p.score" if "score" in schema.names else "click_probability"} AS score,
                click_probability, click_probability_at_position,
                coalesce(p.relevance, 'nan'::FLOAT) AS relevance,
                coalesce(click::FLOAT, 'nan'::FLOAT) AS click,
                position, user_events, query_events, item_shown,
                {", ".join(f"coalesce(o.{name}, 'nan'::DOUBLE) AS oracle_{name}" for name in ("probability", *ORACLE_OPTIONAL))}
                {"".join(f", p.{name}" for name in parts)}
                {"".join(f", coalesce(p.{quote(name)}::FLOAT, 'nan'::FLOAT) AS {quote(name)}" for name in of_labels)}
            FROM {relation} p
            LEFT JOIN oracle o USING (request_id, item_id)
            """
        ).fetchnumpy()
        columns = {name: np.asarray(column) for name, column in columns.items()}
        truth = {name: columns.pop(f"oracle_{name}") for name in ("probability", *ORACLE_OPTIONAL)}
        rows, unmatched, unmatched_exposed = _oracle_counts(db, relation)
        joined = Oracle(**truth, rows=rows, unmatched=unmatched, unmatched_exposed=unmatched_exposed) if oracle else None
    by_part = {name: columns.pop(name) for name in parts}
    by_label = {label: LabelColumns(*(columns.pop(name) for name in names)) for label, names in labels.items()}
    by_candidate = {label: columns.pop(name) for label, name in of_worth.items()}
    return Table(
        **columns, by_part=by_part, meanings=parts, oracle=joined, labels=by_label, worth=worth, by_candidate=by_candidate
    )


def load_graded_pairs(predictions: Path, split: Path, train: Path, memory: str, zero: ZeroId = "none") -> GradedPairs:
    """The graded pairs of query and item, each once, with the relevance tower's distribution (`LEVELS`).

    Args:
        predictions: the merged file.
        split: folder of the samples that were scored, which have the queries' texts.
        train: folder of the training samples, with `judgments` beside it; either may be missing.
        memory: DuckDB's limit.
        zero: what 0 is in the log.
    """
    ours = _our_ids(predictions, ("request_id", "query_id", "item_id"), zero)
    replaced = ", ".join(f"{value} AS {name}" for name, value in ours.items())
    with connect(memory, predictions.parent, predictions, train) as db:
        db.execute(f"CREATE TABLE texts AS SELECT DISTINCT query_id, {normalised_sql('query')} AS text FROM {_samples(split)}")
        db.execute(f"CREATE VIEW trained AS {_trained_pairs(train)}")
        table = db.sql(
            f"""
            SELECT DISTINCT ON (p.query_id, p.item_id) p.query_id, p.relevance, relevance_probabilities,
                coalesce(t.graded, false) AS trained_on, k.text IS NOT NULL AS known_query
            FROM (SELECT * REPLACE ({replaced}) FROM {scan_parquet([predictions])}) p JOIN texts USING (query_id)
            LEFT JOIN (SELECT text, item_id, bool_or(graded) AS graded FROM trained GROUP BY ALL) t
                ON t.text = texts.text AND t.item_id = p.item_id
            LEFT JOIN (SELECT DISTINCT text FROM trained) k ON k.text = texts.text
            WHERE p.relevance IS NOT NULL AND relevance_probabilities IS NOT NULL
            ORDER BY p.query_id, p.item_id, request_id
            """
        ).to_arrow_table()
    lists = table["relevance_probabilities"].combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return GradedPairs(
        relevance_probabilities=values.reshape(len(table), -1 if len(table) else 0),
        **{name: table[name].to_numpy() for name in ("query_id", "relevance", "trained_on", "known_query")},
    )


@contextlib.contextmanager
def connect(memory: str, spill: Path, *read: Path | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB that holds no more than `memory` and spills to files under `spill`.

    Args:
        memory: its limit.
        spill: a folder.
        read: files and folders that are read, to be named.

    Raises:
        ValueError: one of them cannot be read, or the memory is too little.
    """
    try:
        with open_duckdb(memory_limit=memory, temp_directory=str(spill / ".spill")) as db:
            yield db
    except duckdb.OutOfMemoryException as error:
        raise ValueError(f"data.memory: {memory} is too little to join {spill}; {str(error).splitlines()[0]}") from None
    except duckdb.Error as error:
        sources = ", ".join(str(path) for path in read if path is not None)
        raise ValueError(f"one of {sources} is damaged, or no file of its kind: {str(error).splitlines()[0]}") from None


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


def _trained_pairs(train: Path) -> str:
    """A query for the training pairs, judgments and impressions, of the predicted queries' texts, and whether they have a grade.

    Texts that differ in case and spaces alone are one query, as they are to `prepare`.
    """
    splits = [split for split in (train, train.with_name("judgments")) if any(split.glob("*.parquet"))]
    if not splits:
        return "SELECT '' AS text, 0::BIGINT AS item_id, false AS graded WHERE false"
    return f"""
        SELECT text, item_id, relevance IS NOT NULL AS graded FROM (
            SELECT {normalised_sql("query")} AS text, unnest(candidate_item_id) AS item_id,
                unnest(candidate_relevance) AS relevance
            FROM {_samples(*splits)} WHERE text IN (SELECT text FROM texts)
        )"""


def _samples(*splits: Path) -> str:
    return scan_parquet([file for split in splits for file in sample_files(split)])


def _our_ids(predictions: Path, columns: Sequence[str], zero: ZeroId) -> dict[str, str]:
    """Column -> SQL of our ids, of the log's in a file."""
    schema = pq.read_schema(predictions)
    return {name: our_id_sql(name, schema.field(name).type, "none" if name == "request_id" else zero) for name in columns}


def _oracle_query(db: duckdb.DuckDBPyConnection, oracle: Path | None, predictions: Path) -> str:
    if oracle is None:
        optional = ", ".join(f"0.0 AS {name}" for name in ("probability", *ORACLE_OPTIONAL))
        return f"SELECT request_id, item_id, {optional} FROM {scan_parquet([predictions])} WHERE false"
    relation, found = scan_parquet([oracle]), oracle_columns(oracle)
    twice = db.execute(f"SELECT request_id, item_id FROM {relation} GROUP BY ALL HAVING count(*) > 1 LIMIT 1").fetchone()
    if twice:
        raise ValueError(f"{oracle}: request_id {twice[0]}, item_id {twice[1]} stands there more than once")
    optional = ", ".join(f"{n if n in found else 'NULL'}::DOUBLE AS {n}" for n in ORACLE_OPTIONAL)
    kinds = dict(db.execute(f"SELECT column_name, column_type FROM (DESCRIBE FROM {scan_parquet([predictions])})").fetchall())
    ids = ", ".join(f"TRY_CAST({name} AS {kinds[name]}) AS {name}" for name in ("request_id", "item_id"))
    return f"SELECT {ids}, probability::DOUBLE AS probability, {optional} FROM {relation}"


def _oracle_counts(db: duckdb.DuckDBPyConnection, relation: str) -> tuple[int, int, int]:
    unmatched = f"FROM oracle ANTI JOIN {relation} p USING (request_id, item_id)"
    counts = ("FROM oracle", unmatched, f"{unmatched} WHERE exposed = 1")
    rows, missing, missing_exposed = (scalar(db, f"SELECT count(*) {which}") for which in counts)
    return rows, missing, missing_exposed


def _check_finite(db: duckdb.DuckDBPyConnection, predictions: Path) -> None:
    bad = f"FROM {scan_parquet([predictions])} WHERE NOT coalesce(isfinite(click_probability), false)"
    first = db.execute(f"SELECT request_id, item_id {bad} LIMIT 1").fetchone()
    if first:
        rows = scalar(db, f"SELECT count(*) {bad}")
        raise ValueError(
            f"{predictions}: click_probability is not finite in {rows} rows, first at request_id {first[0]}, "
            f"item_id {first[1]}; the model has diverged"
        )


def scalar(db: duckdb.DuckDBPyConnection, query: str) -> int:
    row = db.execute(query).fetchone()
    assert row is not None
    return int(row[0])
