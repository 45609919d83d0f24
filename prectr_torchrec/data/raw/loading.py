"""Each raw table by itself: every row is checked, those without an id are dropped, and what is left becomes a table.

All tables are looked at before anything is refused, so that one message tells what is wrong with all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.column_kinds import Flag, Grade, Position
from prectr_torchrec.data.columns import SAMPLE_WEIGHT, Column, declared_columns, ids_of_weights, sample_columns
from prectr_torchrec.data.counted_kinds import SampleWeight
from prectr_torchrec.data.raw.actions import labels_of_actions, load_actions
from prectr_torchrec.data.raw.labels import time_columns
from prectr_torchrec.data.raw.readings import IdKind, Reading, attribute, identifier, seconds, text
from prectr_torchrec.data.raw.search_results import RESULTS, SEARCHES, raw_table, shown_items
from prectr_torchrec.data.raw.source import (
    Connection,
    Problems,
    RawLogError,
    Source,
    Table,
    describe_rows,
    one_row,
    shown_value,
    text_literal,
)
from prectr_torchrec.data.raw.versions import VALID_FROM, split_versions

Kinds = dict[str, IdKind]


@dataclass(frozen=True)
class Loaded:
    """What `load_sources` made: how each table was read, by its name, and the number of its rows."""

    tables: dict[str, Table]
    rows: dict[str, int]


def load_sources(
    con: Connection,
    data: DataConfig,
    sources: dict[str, Source],
    kinds: Kinds,
    drops: dict[str, int],
    mended: dict[str, int],
) -> Loaded:
    """Makes tables items, queries, users, grades(query_id, item_id, relevance), impressions and actions, of those that are there.

    Args:
        con: connection to fill.
        data: the configuration.
        sources: from `open_sources`.
        kinds: how each column of ids is read.
        drops: filled with what was dropped.
        mended: filled with what was mended.

    Raises:
        RawLogError: rows that cannot be used; the message names the first of each kind.
    """
    loaded, problems = Loaded({}, {"judgments": 0}), Problems()
    for name, source in sources.items():
        with problems.collecting():
            loaded.tables[name] = table = _as_table(source, kinds, data)
            loaded.rows[name] = rows = table.check(con)
            if name in ("impressions", RESULTS):
                _load_impressions(con, table, rows, drops, declared_columns(data, "requests"))
            elif name == "queries" and data.raw.queries is None:
                loaded.rows[name] = _load_query_texts(con, table)
            elif name == "judgments":
                _load_grades(con, table, rows, drops, mended)
            elif name == "actions":
                load_actions(con, table, data, labels_of_actions(data, shown_items(sources)), drops)
            else:
                _load_entities(con, table, rows, drops)
    problems.refuse()
    return loaded


def check_sources(con: Connection, data: DataConfig, sources: dict[str, Source], kinds: Kinds) -> None:
    """Checks every row and makes no table, of sources of which some may be missing, or lack a column.

    Raises:
        RawLogError: rows that cannot be used; the message names the first of each kind.
    """
    problems = Problems()
    for source in sources.values():
        with problems.collecting():
            _as_table(source, kinds, data).check(con)
    problems.refuse()


def _as_table(source: Source, kinds: Kinds, data: DataConfig) -> Table:
    """How each column of a raw table is read."""
    zeros = {"request_id": None}
    ids = {name: identifier(kind, zeros.get(name, data.zero_id)) for name, kind in kinds.items()}
    columns = sample_columns(data, kinds)
    of_table = [column for column in columns if column.source.table == source.name and column.family in ("request", "candidate")]
    declared = [column for column in declared_columns(data, id_kinds=kinds) if raw_table(data, column.source) == source.name]
    readings = {column.source.column: column.kind.raw() for column in (*of_table, *declared)}
    names = {column.source.column: column.source.stored for column in declared}
    if source.name in ("impressions", RESULTS):
        names |= time_columns(data) | ({data.weight: SAMPLE_WEIGHT} if data.weight else {})
    if source.name == "queries" and data.query_group and data.query_group in source:
        names[data.query_group] = "group_id"
        readings[data.query_group] = attribute(kinds[data.query_group], data.zero_id)
    if source.name == "items" and data.valid_from:
        names[data.valid_from] = VALID_FROM
        readings[data.valid_from] = seconds(*_MOMENTS, up=True)
    of_searches = {
        "request_id": ids["request_id"],
        "query_id": ids["query_id"],
        "user_id": attribute(kinds["user_id"], data.zero_id),
        "timestamp": seconds(*_MOMENTS),
    }
    of_results = {
        **{name: ids[name] for name in ("request_id", "item_id")},
        "click": Flag().raw(),
        **{column: seconds(*_MOMENTS, nullable=True) for column in time_columns(data)},
        **({data.weight: SampleWeight().raw()} if data.weight else {}),
        "position": Position().raw(),
    }
    keys: dict[str, Reading] = {
        "items": {"item_id": ids["item_id"]},
        "queries": {"query_id": ids["query_id"]},
        "users": {"user_id": ids["user_id"]},
        "actions": {
            **{name: ids[name] for name in ("request_id", "item_id")},
            "action": text(),
            "timestamp": seconds(*_MOMENTS),
        },
        "judgments": {
            **{name: ids[name] for name in ("query_id", "item_id")},
            "relevance": Grade(data.levels).raw(),
            SPELLING: text(),
        },
        "impressions": of_searches | of_results,
        SEARCHES: of_searches,
        RESULTS: of_results,
    }[source.name]
    return Table(
        source, keys | {name: how for name, how in readings.items() if name not in keys}, names, ids_of_weights(declared)
    )


def _load_entities(con: Connection, table: Table, rows: int, drops: dict[str, int]) -> None:
    """Makes table items, queries or users, sorted by id; rows without one are of no use."""
    name, key = table.source.name, next(iter(table.readings))
    known = f"{key} <> 0" if key == "user_id" else f"{key} IS NOT NULL"
    con.execute(f"CREATE TABLE {name} AS SELECT * FROM ({table.select()}) WHERE {known} ORDER BY 1")
    drops[f"{name} without {key}"] = rows - one_row(con, f"SELECT count(*) FROM {name}")[0]
    from_times = [column for column, called in table.names.items() if called == VALID_FROM]
    refuse_duplicates(con, table, name, (key, *from_times), _CHANGING if name == "items" and not from_times else "")
    if from_times:
        split_versions(con)
    if name == SEARCHES:
        drop_without(con, table, name, ("query_id",), drops)


def _load_query_texts(con: Connection, table: Table) -> int:
    """Makes table queries of the texts that were searched, each as it is written most often; returns their number."""
    written = f"SELECT query_id, query, count(*) AS n FROM ({table.select()}) WHERE query_id IS NOT NULL GROUP BY ALL"
    most = "row_number() OVER (PARTITION BY query_id ORDER BY n DESC, query) = 1"
    con.execute(f"CREATE TABLE queries AS SELECT query_id, query FROM ({written}) QUALIFY {most} ORDER BY 1")
    return int(one_row(con, "SELECT count(*) FROM queries")[0])


def _load_grades(con: Connection, table: Table, rows: int, drops: dict[str, int], mended: dict[str, int]) -> None:
    """Makes table grades, a row each pair.

    A pair has one grade. Where queries are their texts, and their spellings are graded otherwise, their mean counts.
    """
    known = f"FROM ({table.select()}) WHERE query_id IS NOT NULL AND item_id IS NOT NULL"
    with_ids = one_row(con, f"SELECT count(*) {known}")[0]
    con.execute(f"CREATE TABLE written AS SELECT DISTINCT * {known}")
    spelled = f", {SPELLING}" if SPELLING in table.readings else ""
    pair = f"SELECT query_id, item_id{spelled} FROM written GROUP BY ALL"
    for query, item, *written in con.execute(f"{pair} HAVING count(*) > 1 ORDER BY ALL LIMIT 1").fetchall():
        of_text = "".join(f" AND {SPELLING} = {text_literal(value)}" for value in written)
        found = table.find(con, ["relevance"], f"query_id = {query} AND item_id = {item}{of_text}", 2)
        given = " and ".join(str(value) for _, _, (value,) in found)
        raise RawLogError(f"{describe_rows(found)} grade the same (query_id, item_id) with {given}; a pair has one grade")
    (different,) = one_row(con, "SELECT count(*) FROM (SELECT DISTINCT query_id, item_id, relevance FROM written)")
    mean = "avg(relevance ORDER BY relevance) AS relevance, count(DISTINCT relevance) AS grades"
    con.execute(f"CREATE TABLE grades AS SELECT query_id, item_id, {mean} FROM written GROUP BY ALL")
    con.execute("DROP TABLE written")
    drops["judgments without a query or item"] = rows - with_ids
    drops["judgments given twice"] = with_ids - different
    (others,) = one_row(con, "SELECT coalesce(sum(grades - 1) FILTER (WHERE grades > 1), 0) FROM grades")
    con.execute("ALTER TABLE grades DROP COLUMN grades")
    mended["judgments that grade other spellings of a query otherwise, of which the mean counts"] = int(others)


def _load_impressions(con: Connection, table: Table, rows: int, drops: dict[str, int], shared: Sequence[Column]) -> None:
    """Makes table impressions, or results, which are these without what their requests have; positions that are not logged are
    null. `shared`: declared columns of requests."""
    name = table.source.name
    if not rows:
        raise RawLogError(f"{table.source.files[0]}: the log is empty; impressions need at least one row")
    position = "" if "position" in table.source else ", NULL::BIGINT AS position"
    con.execute(f"CREATE TABLE {name} AS SELECT *{position} FROM ({table.select()})")
    problems = Problems()
    with problems.collecting():
        drop_without(con, table, name, [column for column in _OF_IMPRESSIONS if column in table.source], drops)
    with problems.collecting():
        refuse_duplicates(con, table, name, ("request_id", "item_id"))
    with problems.collecting():
        if name == "impressions":
            _refuse_mixed_requests(con, table, [*_OF_REQUESTS, *(column.source.column for column in shared)])
    problems.refuse()


SPELLING = "spelling"
"""What tables call the text of a query as it is written, where that is its id."""
_MOMENTS = (0, 10**11)
_CHANGING = ", or data.valid_from names the column with the time from which each row holds"
_OF_IMPRESSIONS = ("request_id", "query_id", "item_id")
"""Ids without which an impression is of no use."""
_OF_REQUESTS = ("timestamp", "user_id", "query_id")
"""What the impressions of a request have in common."""


def drop_without(con: Connection, table: Table, name: str, columns: Sequence[str], drops: dict[str, int]) -> None:
    """Drops rows without an id, of table `name` that was made from `table`.

    Raises:
        RawLogError: more than half would be dropped; names the first.
    """
    rows = one_row(con, f"SELECT count(*) FROM {name}")[0]
    for column in columns:
        key = table.names[column]
        (dropped,) = one_row(con, f"DELETE FROM {name} WHERE {key} IS NULL")
        if dropped * 2 > rows:
            ((file, row, _),) = table.find(con, [column], f"{key} IS NULL", 1)
            raise RawLogError(
                f"{file}: column {table.source.columns[column]!r}, row {row}: None; expected an id, which {dropped} of {rows} "
                "rows lack; up to half are dropped and counted"
            )
        drops[f"{table.source.name} without {column}"] = dropped


def refuse_duplicates(con: Connection, table: Table, name: str, keys: tuple[str, ...], advice: str = "") -> None:
    """Refuses two rows of one key, of table `name` that was made from `table`."""
    columns = ", ".join(table.names[key] for key in keys)
    twice = con.execute(f"SELECT {columns} FROM {name} GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1").fetchall()
    if not twice:
        return
    condition = " AND ".join(f"{table.names[key]} = {value}" for key, value in zip(keys, twice[0], strict=True))
    found = table.find(con, keys, condition, 2)
    shown = ", ".join(map(repr, found[0][2]))
    raise RawLogError(f"{describe_rows(found)} have the same ({', '.join(keys)}) = ({shown}); it may be there only once{advice}")


def _refuse_mixed_requests(con: Connection, table: Table, columns: Sequence[str]) -> None:
    """Refuses requests with several times, users or queries, or several values of a column of requests."""
    problems: list[str] = []
    for column, name in ((column, table.names[column]) for column in columns):
        mixed = con.execute(
            f"SELECT request_id, min({name}), max({name}) FROM impressions GROUP BY request_id "
            f"HAVING min({name}) <> max({name}) ORDER BY 1 LIMIT 1"
        ).fetchall()
        for request_id, *different in mixed:
            rows = f"request_id = {request_id}"
            values = [[*value] if isinstance(value, tuple) else value for value in different]  # vectors are tuples
            ends = [table.find(con, [column, "request_id"], f"{rows} AND {name} = {value}", 1)[0] for value in values]
            (first, request), (second, _) = (values for _, _, values in ends)
            problems.append(
                f"{describe_rows(ends)} belong to one request, {request!r}, but differ in {table.source.columns[column]!r}: "
                f"{shown_value(first)} and {shown_value(second)}; the rows of a request share {', '.join(columns)}"
            )
    if problems:
        raise RawLogError("\n".join(problems))


def count_unknown(con: Connection, table: Table, name: str, owners: dict[str, tuple[str, str]], drops: dict[str, int]) -> None:
    """Counts rows of table `name`, made from `table`, whose id is in no table.

    Args:
        owners: our column -> the table of its ids, and what messages call that.

    Raises:
        RawLogError: more than half would be dropped; names both files and the first id.
    """
    rows = one_row(con, f"SELECT count(*) FROM {name}")[0]
    for column, (owner, label) in owners.items():
        key = table.names[column]
        missing = f"FROM {name} t ANTI JOIN {owner} o ON o.{column} = t.{key}"
        unknown, example = one_row(con, f"SELECT count(*), min(t.{key}) {missing}")
        if unknown * 2 > rows:
            ((_, _, (example,)),) = table.find(con, [column], f"{key} = {example}", 1)
            where = table.owner(column).source.label
            raise RawLogError(
                f"{where}: {unknown} of {rows} rows have a {column} that is not in {label} (such as {example!r}); "
                f"are these the files of one log? Up to half would be dropped and counted"
            )
        drops[f"{table.source.name} of an unknown {column.removesuffix('_id')}"] = unknown
