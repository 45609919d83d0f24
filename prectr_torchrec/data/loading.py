"""Each raw table by itself: every row is checked, those without an id are dropped, and what is left becomes a table.

All tables are looked at before anything is refused, so that one message tells what is wrong with all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prectr_torchrec.config import DataConfig, Levels
from prectr_torchrec.data.positions import MAX_POSITION
from prectr_torchrec.data.raw import Connection, Problems, RawLogError, Source, Table, describe_rows, one_row
from prectr_torchrec.data.readings import IdKind, Reading, attribute, identifier, number, seconds, text, whole_number

Kinds = dict[str, IdKind]


@dataclass(frozen=True)
class Loaded:
    """What `load_sources` made: how each table was read, by its name, and the number of its rows."""

    tables: dict[str, Table]
    rows: dict[str, int]


def attribute_columns(attributes: Sequence[str]) -> dict[str, str]:
    """Attribute -> its column in tables and column files, where the log's own name could be one of ours, or no name of a file."""
    return {name: f"a{number}" for number, name in enumerate(attributes)}


def load_sources(con: Connection, data: DataConfig, sources: dict[str, Source], kinds: Kinds, drops: dict[str, int]) -> Loaded:
    """Makes tables items, queries, users, grades(query_id, item_id, relevance) and impressions, of those that are there.

    Args:
        con: connection to fill.
        data: the configuration.
        sources: from `open_sources`.
        kinds: how each column of ids is read.
        drops: filled with what was dropped.

    Raises:
        RawLogError: rows that cannot be used; the message names the first of each kind.
    """
    group = [data.query_group] if data.query_group and data.query_group in sources["queries"] else []
    entities: dict[str, tuple[str, str | None, list[str]]] = {
        "items": ("item_id", "title", data.item_attributes),
        "queries": ("query_id", "query", group),
        "users": ("user_id", None, data.user_attributes),
    }
    loaded, problems = Loaded({}, {"judgments": 0}), Problems()
    for name, source in sources.items():
        with problems.collecting():
            if name in entities:
                key, text_column, attributes = entities[name]
                made = _load_entities(con, source, key, kinds, data, text_column, attributes, drops)
            else:
                made = {"judgments": _load_grades, "impressions": _load_impressions}[name](con, source, kinds, data, drops)
            loaded.tables[name], loaded.rows[name] = made
    problems.refuse()
    return loaded


def _load_entities(
    con: Connection, source: Source, key: str, kinds: Kinds, data: DataConfig, text_column: str | None, attributes: list[str],
    drops: dict[str, int],
) -> tuple[Table, int]:  # fmt: skip
    """Makes table items, queries or users, sorted by id; rows without one are of no use."""
    readings: dict[str, Reading] = {key: identifier(kinds[key], data.zero_id)}
    readings |= {text_column: text()} if text_column else {}
    readings |= {name: attribute(kinds[name], data.zero_id) for name in attributes}
    table = Table(source, readings, attribute_columns(attributes))
    rows = table.check(con)
    known = f"{key} <> 0" if key == "user_id" else f"{key} IS NOT NULL"
    con.execute(f"CREATE TABLE {source.name} AS SELECT * FROM ({table.select()}) WHERE {known} ORDER BY 1")
    drops[f"{source.name} without {key}"] = rows - one_row(con, f"SELECT count(*) FROM {source.name}")[0]
    refuse_duplicates(con, table, source.name, (key,))
    return table, rows


def _load_grades(con: Connection, source: Source, kinds: Kinds, data: DataConfig, drops: dict[str, int]) -> tuple[Table, int]:
    """Makes table grades, each row once."""
    ids = {name: identifier(kinds[name], data.zero_id) for name in ("query_id", "item_id")}
    table = Table(source, {**ids, "relevance": grade(data.levels)})
    rows = table.check(con)
    known = f"FROM ({table.select()}) WHERE query_id IS NOT NULL AND item_id IS NOT NULL"
    with_ids = one_row(con, f"SELECT count(*) {known}")[0]
    con.execute(f"CREATE TABLE grades AS SELECT DISTINCT * {known}")
    two = con.execute("SELECT query_id, item_id FROM grades GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1").fetchall()
    for query, item in two:
        found = table.find(con, ["relevance"], f"query_id = {query} AND item_id = {item}", 2)
        given = " and ".join(str(value) for _, _, (value,) in found)
        raise RawLogError(f"{describe_rows(found)} grade the same (query_id, item_id) with {given}; a pair has one grade")
    drops["judgments without a query or item"] = rows - with_ids
    drops["judgments given twice"] = with_ids - one_row(con, "SELECT count(*) FROM grades")[0]
    return table, rows


def _load_impressions(
    con: Connection, source: Source, kinds: Kinds, data: DataConfig, drops: dict[str, int]
) -> tuple[Table, int]:
    """Makes table impressions; positions that are not logged are null."""
    keys = ("request_id", "query_id", "item_id")
    readings = {name: identifier(kinds[name], None if name == "request_id" else data.zero_id) for name in keys}
    readings["user_id"] = attribute(kinds["user_id"], data.zero_id)
    readings["timestamp"] = seconds(0, 10**11)
    readings["click"] = whole_number(0, 1, "0 or 1")
    expected = f"a position in 1..{MAX_POSITION}, or null or 0 where not logged"
    readings["position"] = whole_number(0, MAX_POSITION, expected, nullable=True)
    table = Table(source, readings)
    rows = table.check(con)
    if not rows:
        raise RawLogError(f"{source.files[0]}: the log is empty; impressions need at least one row")
    position = "" if "position" in source else ", NULL::BIGINT AS position"
    con.execute(f"CREATE TABLE impressions AS SELECT *{position} FROM ({table.select()})")
    problems = Problems()
    with problems.collecting():
        drop_without(con, table, "impressions", keys, drops)
    with problems.collecting():
        refuse_duplicates(con, table, "impressions", ("request_id", "item_id"))
    with problems.collecting():
        _refuse_mixed_requests(con, table)
    problems.refuse()
    return table, rows


def grade(levels: Levels) -> Reading:
    """Grades, or null."""
    low, high = levels.grade_min, levels.grade_max
    return number(low, high, f"a grade in {low}..{high} (data.levels.grade_min and grade_max), or null")


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


def refuse_duplicates(con: Connection, table: Table, name: str, keys: tuple[str, ...]) -> None:
    """Refuses two rows of one key, of table `name` that was made from `table`."""
    columns = ", ".join(table.names[key] for key in keys)
    twice = con.execute(f"SELECT {columns} FROM {name} GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1").fetchall()
    if not twice:
        return
    condition = " AND ".join(f"{table.names[key]} = {value}" for key, value in zip(keys, twice[0], strict=True))
    found = table.find(con, keys, condition, 2)
    shown = ", ".join(map(repr, found[0][2]))
    raise RawLogError(f"{describe_rows(found)} have the same ({', '.join(keys)}) = ({shown}); it may be there only once")


def _refuse_mixed_requests(con: Connection, table: Table) -> None:
    """Refuses requests with several times, users or queries."""
    problems: list[str] = []
    for column in ("timestamp", "user_id", "query_id"):
        mixed = con.execute(
            f"SELECT request_id, min({column}), max({column}) FROM impressions GROUP BY request_id "
            f"HAVING min({column}) <> max({column}) ORDER BY 1 LIMIT 1"
        ).fetchall()
        for request_id, *different in mixed:
            rows = f"request_id = {request_id}"
            ends = [table.find(con, [column, "request_id"], f"{rows} AND {column} = {value}", 1)[0] for value in different]
            (first, request), (second, _) = (values for _, _, values in ends)
            problems.append(
                f"{describe_rows(ends)} belong to one request, {request!r}, but differ in {table.source.columns[column]!r}: "
                f"{first!r} and {second!r}; the rows of a request share timestamp, user and query"
            )
    if problems:
        raise RawLogError("\n".join(problems))
