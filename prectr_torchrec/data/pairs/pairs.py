"""`prectr pairs`: the distinct (query, title) pairs of a raw log, for a teacher to grade and a student to learn from.

One row a pair, sorted by query and item. Some come from the log (graded, shown), some are given (candidates that were never
shown), some are drawn; every pair of a query, and of every query of the same text, is in one split. Queries that are new after
the log's train part have a split of their own, so that what is measured on them was not taught to a student.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from prectr_torchrec.config.data import DataConfig, Levels, RawTable
from prectr_torchrec.config.text import PairsConfig
from prectr_torchrec.data.columns import stored_name
from prectr_torchrec.data.hashing import hash_sql, normalised_sql
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.data.pairs.made_queries import make_queries
from prectr_torchrec.data.pairs.new_queries import find_new_queries
from prectr_torchrec.data.parquet_files import WRITTEN, read_parquet, readable
from prectr_torchrec.data.prepare.prepare import enough_memory, open_database
from prectr_torchrec.data.prepare.splits import in_train, split_times
from prectr_torchrec.data.raw.files import given_files
from prectr_torchrec.data.raw.loading import Kinds
from prectr_torchrec.data.raw.readings import identifier
from prectr_torchrec.data.raw.source import Connection, RawLogError, Table, one_row, open_source
from prectr_torchrec.data.raw.tables import load_candidates, load_tables, open_sources
from prectr_torchrec.runs.workspace import replacing
from prectr_torchrec.system.errors import ConfigError, nearest
from prectr_torchrec.system.locks import writes_file
from prectr_torchrec.system.paths import check_database, only_local
from prectr_torchrec.system.progress import Progress

PAIRS_VERSION = "2"
SOURCES = ("graded", "shown", "candidate", "same_category", "other_category", "made")
"""Where a pair comes from; one that has several origins has the first of them."""
SPLITS = ("train", "validation", "test", "new")
"""`new`: of queries that the log's train part does not search, but its validation or test part; they teach nothing."""
MADE = SOURCES.index("made")
DRAWS = 4
"""Draws for each pair wanted, since some give a pair that is there already."""
_VERSION_KEY, _LEVELS_KEY, _SETTINGS_KEY = b"prectr_pairs", b"levels", b"settings"
_COLUMNS = {
    "query_id": pa.int64(),
    "item_id": pa.int64(),
    "query": pa.string(),
    "title": pa.string(),
    "relevance": pa.float32(),  # the grade, null where there is none
    "source": pa.string(),
    "split": pa.string(),
}


@only_local
@writes_file("out")
def write_pairs(
    data: DataConfig,
    pairs: PairsConfig,
    raw: Path,
    out: Path,
    *,
    candidates: Path | None = None,
    test_queries: Path | None = None,
) -> dict[str, Any]:
    """Collects the pairs of a raw log.

    Args:
        data: what the log's files are, and where its train part ends.
        pairs: what to draw, and the splits.
        raw: folder of the raw log.
        out: Parquet file to write; it is replaced when the new one is whole.
        candidates: a file or glob of `request_id, item_id` or `query_id, item_id` with further pairs, as for `prepare`.
        test_queries: a file or glob of `query_id`: these are test, whatever their hash.

    Returns:
        `rows`, `by_source`, `by_split`, `grades` (by split), `new_queries` (as of `prepare`) and `dropped`, each a count or a
        dict of counts.

    Raises:
        RawLogError: the log cannot be used as it is; names file, column and row.
    """
    if pairs.category not in data.ids_of("items") and pairs.draws():
        hint = nearest(pairs.category, data.ids_of("items"))
        raise RawLogError(f"pairs.category: {pairs.category!r} is not in data.item_attributes, nor an id of items{hint}")
    check_database(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(out) as temporary,
        enough_memory(data.memory),
        open_database(temporary.with_name("log.duckdb"), data.memory, temporary.with_name("spill")) as con,
    ):
        report = load_tables(con, data, open_sources(con, data, raw))
        if candidates is not None:
            files = given_files("candidates", candidates)
            load_candidates(con, files, report["id_kinds"], data, report["dropped"])
        _collect(con, given=candidates is not None)
        _draw(con, pairs, data)
        new_queries = find_new_queries(con, in_train(data, split_times(con, data)))
        _split(con, data, pairs, report["id_kinds"], test_queries)
        con.execute(f"DELETE FROM drawn USING splits s WHERE s.query = drawn.query AND origin = {MADE} AND split <> 'train'")
        con.execute("CREATE VIEW pairs AS SELECT * FROM known UNION ALL SELECT query, item, origin, NULL FROM drawn")
        metadata = {_VERSION_KEY: PAIRS_VERSION, _LEVELS_KEY: data.levels.model_dump_json()}
        metadata[_SETTINGS_KEY] = pairs.model_dump_json()
        _write(con, temporary, pa.schema(list(_COLUMNS.items()), metadata=metadata), pairs.rows_per_row_group)
        return {**_count(con), "new_queries": new_queries, "dropped": report["dropped"]}


@dataclass(frozen=True)
class PairsFile:
    """A file of pairs that was found whole and of this version."""

    path: Path
    levels: Levels
    shard_rows: tuple[int, ...]
    """Rows of each row group."""

    @classmethod
    def open(cls, path: Path) -> PairsFile:
        """Raises ValueError where `path` is not a file of pairs of this version."""
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file; `prectr pairs` writes one")
        with readable(path):
            metadata = pq.read_metadata(path)
        found = metadata.metadata or {}
        version = found.get(_VERSION_KEY, b"none").decode(errors="replace")
        if version != PAIRS_VERSION:
            raise ValueError(f"{path}: pairs version {version}, this release reads {PAIRS_VERSION}; run `prectr pairs` again")
        try:
            levels = Levels.model_validate_json(found.get(_LEVELS_KEY, b""))
        except ValidationError:
            raise ValueError(f"{path}: it does not say of which levels its grades are; run `prectr pairs` again") from None
        return cls(path, levels, tuple(metadata.row_group(shard).num_rows for shard in range(metadata.num_row_groups)))

    @property
    def rows(self) -> int:
        """Of the whole file."""
        return sum(self.shard_rows)

    def check_levels(self, levels: Levels) -> None:
        """Raises ConfigError where the pairs were made with other levels."""
        if self.levels != levels:
            made = ", ".join(f"{name} {value}" for name, value in self.levels)
            raise ConfigError(f"data.levels: {self.path} was made with {made}; use these or make it anew")

    def read(self, columns: list[str] | None = None, split: str | None = None) -> pa.Table:
        """The pairs in order; of one split where given."""
        if split is None:
            return read_parquet(self.path, columns)
        wanted = None if columns is None else list(dict.fromkeys([*columns, "split"]))
        table = read_parquet(self.path, wanted)
        table = table.filter(pc.equal(table["split"], split))
        return table if columns is None else table.select(columns)

    def read_shard(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        return read_parquet(self.path, columns, shard)

    def level_grades(self) -> NDArray[np.float64]:
        """(K,) the grade that stands for each level: the one set, else the mean of its train grades, or the middle."""
        levels = self.levels
        if levels.level_grades is not None:
            return np.array(levels.level_grades)
        grades = self.read(["relevance"], "train")["relevance"].drop_null().to_numpy()
        level = grade_levels(grades, levels.boundaries)
        means = [grades[level == k].mean(dtype=np.float64) if (level == k).any() else np.nan for k in range(1, levels.count + 1)]
        return np.where(np.isnan(means), levels.grades, means)


def _collect(con: Connection, *, given: bool) -> None:
    """Makes table known(query, item, origin, relevance): the pairs that are not drawn; origin indexes SOURCES."""
    origins = "SELECT query, item, 0 AS origin, relevance FROM judgments UNION ALL SELECT query, item, 1, NULL FROM events"
    if given:
        origins += " UNION ALL SELECT query, item, 2, NULL FROM candidates"
    con.execute(
        f"CREATE TABLE known AS SELECT query, item, min(origin) AS origin, max(relevance) AS relevance FROM ({origins}) "
        "GROUP BY ALL ORDER BY query, item"
    )


def _draw(con: Connection, pairs: PairsConfig, data: DataConfig) -> None:
    """Makes table drawn(query, item, origin), and adds made queries to table queries.

    A draw of the same category takes the category of one of the query's graded or shown items at random, and one of its items
    at random; a draw of another category takes any item and is void if its category is among the query's. Items without a
    category take no part. Draws are hashes of seed, query and number: they depend on nothing else.
    """
    con.execute("CREATE TABLE drawn (query BIGINT, item BIGINT, origin INTEGER)")
    if not pairs.draws():
        return
    category = stored_name(data, "items", pairs.category)
    # items in order of category: those of a category are places first .. first + size - 1
    con.execute(
        f"CREATE TABLE placed AS SELECT rowid AS item, {category} AS category, "
        f"row_number() OVER (ORDER BY {category}, rowid) - 1 AS place FROM items WHERE {category} <> 0"
    )
    con.execute("CREATE TABLE spans AS SELECT category, min(place) AS first, count(*) AS size FROM placed GROUP BY ALL")
    con.execute(
        "CREATE TABLE asked AS SELECT k.query, count(*) AS pairs, list(p.category ORDER BY k.item) AS categories "
        "FROM known k JOIN placed p USING (item) WHERE origin <= 1 GROUP BY ALL"
    )
    for origin, share in ((3, pairs.same_category), (4, pairs.other_category)):
        wanted = f"CAST(round(pairs * {share}) AS BIGINT)"
        numbered = f"SELECT *, {wanted} AS wanted, unnest(range({wanted} * {DRAWS})) AS number FROM asked"
        first, second = (hash_sql(f"concat_ws(' ', {pairs.seed}, {origin}, q.query_id, number, {draw})") for draw in (1, 2))
        random = f"SELECT n.*, {first} AS first_draw, {second} AS second_draw "
        random += f"FROM ({numbered}) n JOIN queries q ON q.rowid = n.query"
        if origin == 3:
            place = "s.first + second_draw % s.size"
            join = "JOIN spans s ON s.category = categories[1 + first_draw % len(categories)]"
        else:
            place, join = "first_draw % (SELECT count(*) FROM placed)", ""
        places = f"SELECT r.query, wanted, number, categories, {place} AS place FROM ({random}) r {join}"
        usable = "" if origin == 3 else "WHERE NOT list_contains(categories, p.category)"
        con.execute(
            f"""INSERT INTO drawn SELECT query, item, {origin} FROM (
                SELECT d.query, p.item, any_value(wanted) AS wanted, min(number) AS number
                FROM ({places}) d JOIN placed p USING (place) {usable} GROUP BY ALL) f
            ANTI JOIN known k USING (query, item)
            QUALIFY row_number() OVER (PARTITION BY query ORDER BY number) <= wanted"""
        )
    make_queries(con, pairs, MADE)


def _split(con: Connection, data: DataConfig, pairs: PairsConfig, kinds: Kinds, test_queries: Path | None) -> None:
    """Makes table splits(query, split)."""
    con.execute("CREATE TABLE held_out (query_id BIGINT)")
    if test_queries is not None:
        source = open_source(con, "test_queries", RawTable(path=""), given_files("test_queries", test_queries), ["query_id"])
        table = Table(source, {"query_id": identifier(kinds["query_id"], data.zero_id)})
        table.check(con)
        con.execute(f"INSERT INTO held_out SELECT DISTINCT query_id FROM ({table.select()})")
        if not one_row(con, "SELECT count(*) FROM held_out SEMI JOIN queries USING (query_id)")[0]:
            raise RawLogError(f"{source.label}: none of its queries is among the log's")
    con.execute(
        f"""CREATE TABLE splits AS SELECT query,
            CASE WHEN bool_or(held_out) OVER (PARTITION BY text) OR share < {pairs.test_fraction} THEN 'test'
            WHEN query IN (SELECT query FROM new_queries) THEN 'new'
            WHEN share < {pairs.test_fraction + pairs.validation_fraction} THEN 'validation' ELSE 'train' END AS split
        FROM (SELECT rowid AS query, {normalised_sql("query")} AS text, {hash_sql("text")} / {2.0**62} AS share,
            query_id IN (SELECT query_id FROM held_out) AS held_out FROM queries)"""
    )


def _write(con: Connection, path: Path, schema: pa.Schema, rows_per_row_group: int) -> None:
    names = " ".join(f"WHEN {n} THEN '{name}'" for n, name in enumerate(SOURCES))
    query = (
        f"SELECT q.query_id, i.item_id, q.query, i.title, relevance::FLOAT AS relevance, CASE origin {names} END AS source, "
        "split FROM pairs p JOIN splits USING (query) JOIN queries q ON q.rowid = p.query JOIN items i ON i.rowid = p.item "
        "ORDER BY p.query, p.item"
    )
    (total,) = one_row(con, "SELECT count(*) FROM pairs")
    with pq.ParquetWriter(path, schema, **WRITTEN) as writer, Progress("writing", total=total, unit="pairs") as progress:
        pending = schema.empty_table()
        for batch in con.sql(query).to_arrow_reader(rows_per_row_group):  # batches of about so many rows, row groups of exactly
            progress.update(batch.num_rows)
            pending = pa.concat_tables([pending, pa.Table.from_batches([batch]).cast(schema)])
            while pending.num_rows >= rows_per_row_group:
                writer.write_table(pending.slice(0, rows_per_row_group))
                pending = pending.slice(rows_per_row_group)
        if pending.num_rows:
            writer.write_table(pending)


def _count(con: Connection) -> dict[str, Any]:
    counted = "SELECT origin, split, count(*), count(relevance) FROM pairs JOIN splits USING (query) GROUP BY ALL"
    rows = con.execute(counted).fetchall()
    return {
        "rows": sum(count for _, _, count, _ in rows),
        "by_source": {name: sum(count for o, _, count, _ in rows if SOURCES[o] == name) for name in SOURCES},
        "by_split": {name: sum(count for _, split, count, _ in rows if split == name) for name in SPLITS},
        "grades": {name: sum(grades for _, split, _, grades in rows if split == name) for name in SPLITS},
    }
