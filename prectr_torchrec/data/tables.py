"""The raw log as checked DuckDB tables with dense item and query numbers.

Tables made here, all sorted and complete:
    items(item_id, title, <attributes>) and queries(query_id, query, group_id); their `rowid` is the dense number;
    users(user_id, <attributes>);
    judgments(query, item, relevance), and graded likewise, with the grades that queries of the same text share;
    predicted(query, item, predicted), packed as in `predicted.py`, of pairs without a grade;
    events(request_id, timestamp, user_id, query, group_id, item, position, click, relevance, level, predicted), user 0
        where nobody is known, relevance NaN and level 0 without grade, predicted 0 without prediction;
    requests(request_id, timestamp, user_id, query).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prectr_torchrec.config import DataConfig, Levels, RawTable, nearest
from prectr_torchrec.data.positions import MAX_POSITION, raise_positions
from prectr_torchrec.data.predicted import load_predicted
from prectr_torchrec.data.raw import (
    Check,
    Connection,
    IdKind,
    RawLogError,
    Source,
    attribute,
    check_rows,
    count_zeros,
    describe_rows,
    find_files,
    find_rows,
    id_kinds,
    identifier,
    mixed_ids,
    number,
    one_row,
    open_source,
    quote,
    text,
    whole_number,
)
from prectr_torchrec.data.spelling import match_ids, share_grades

Kinds = dict[str, IdKind]
MAX_JUDGED = 64
"""Items of one row without a user; a query with more takes several rows, `part` 0, 1, ..."""
PART = f"(row_number() OVER (PARTITION BY query ORDER BY item) - 1) // {MAX_JUDGED}"


def open_sources(con: Connection, data: DataConfig, raw: Path) -> dict[str, Source]:
    """The raw tables that are there, by name; columns are looked for, rows not read yet.

    Raises:
        RawLogError: a file or column that the configuration needs is missing.
    """
    log = data.raw

    def look(name: str, table: RawTable, required: list[str], optional: Sequence[str] = ()) -> Source:
        return open_source(con, name, table, find_files(name, table, raw), required, optional)

    clicks = ["request_id", "timestamp", "user_id", "query_id", "item_id", "click"]
    sources = {
        "impressions": look("impressions", log.impressions, clicks, ["position"]),
        "items": look("items", log.items, ["item_id", "title", *data.item_attributes]),
        "queries": look("queries", log.queries, ["query_id", "query"], [data.query_group] if data.query_group else []),
    }
    if log.judgments and find_files("judgments", log.judgments, raw, optional=True):
        sources["judgments"] = look("judgments", log.judgments, ["query_id", "item_id", "relevance"])
    if log.users and (data.user_attributes or find_files("users", log.users, raw, optional=True)):
        sources["users"] = look("users", log.users, ["user_id", *data.user_attributes])
    elif data.user_attributes:
        raise RawLogError(f"data.user_attributes is {data.user_attributes}, but data.raw.users is null: name the users file")
    if data.query_group and data.query_group not in sources["queries"] and data.query_group not in data.item_attributes:
        hint = nearest(data.query_group, data.item_attributes)
        raise RawLogError(
            f"data.query_group: {data.query_group!r} is neither a column of {sources['queries'].label} nor in "
            f"data.item_attributes{hint}; set it to one of these, or to null for no fallback"
        )
    return sources


def load_tables(con: Connection, data: DataConfig, sources: dict[str, Source], scores: Sequence[Path] = ()) -> dict[str, Any]:
    """Checks every row and makes the tables; returns what to report: id kinds, row counts, drops, what was mended, oddities.

    Args:
        con: connection to fill.
        data: the configuration.
        sources: from `open_sources`.
        scores: files of soft grades, from `find_scores`.

    Raises:
        RawLogError: a row that cannot be used; the message names it.
    """
    columns = ["request_id", "user_id", "query_id", "item_id", *data.item_attributes, *data.user_attributes]
    columns += [data.query_group] if data.query_group else []
    kinds = id_kinds(con, list(sources.values()), dict.fromkeys(columns))
    drops: dict[str, int] = {}
    mended: dict[str, int] = {}
    rows = {"items": _load_entities(con, sources["items"], "item_id", kinds, data, "title", data.item_attributes, drops)}
    group = [data.query_group] if data.query_group and data.query_group in sources["queries"] else []
    rows["queries"] = _load_entities(con, sources["queries"], "query_id", kinds, data, "query", group, drops)
    if "users" in sources:
        rows["users"] = _load_entities(con, sources["users"], "user_id", kinds, data, None, data.user_attributes, drops)
    rows["judgments"] = _load_judgments(con, sources, kinds, data, drops, mended)
    _add_groups(con, data, from_column=bool(group))
    predicted = load_predicted(con, scores, data.levels.count)
    if scores and not predicted:
        raise RawLogError(f"{scores[0].parent}: grades no pair of this log that has no grade; are these pairs of this log?")
    if scores:
        rows["predicted pairs"] = predicted
    rows["impressions"], positions_from = _load_events(con, sources, kinds, data, drops, mended)
    told = {
        "level_grades": _mean_grades(con, data.levels),
        "positions_from": positions_from,
        "zeros": _count_zeros(con, data, sources) if data.zero_id == "none" else {},
        "mixed_ids": mixed_ids(con, list(sources.values()), kinds),
    }
    drops, mended = ({what: count for what, count in counts.items() if count} for counts in (drops, mended))
    return {"id_kinds": kinds, "rows": rows, "dropped": drops, "mended": mended, **told}


def _count_zeros(con: Connection, data: DataConfig, sources: dict[str, Source]) -> dict[str, int]:
    group = [data.query_group] if data.query_group else []
    columns = {
        "impressions": ["user_id"],
        "items": ["item_id", *data.item_attributes],
        "queries": ["query_id", *group],
        "users": data.user_attributes,
    }
    found = (count_zeros(con, source, columns.get(name, ())) for name, source in sources.items())
    return {column: count for counts in found for column, count in counts.items()}


def load_candidates(con: Connection, files: tuple[Path, ...], kinds: Kinds, data: DataConfig, drops: dict[str, int]) -> None:
    """Makes table `candidates`(request_id, timestamp, user_id, query, part, item, relevance, predicted) from candidate sets.

    Their files have `request_id, item_id` (requests of the log) or `query_id, item_id[, relevance]` (queries alone).

    Raises:
        RawLogError: a row that cannot be used, or candidates of which more than half are unknown.
    """
    source = open_source(con, "candidates", RawTable(path=""), files, ["item_id"], ["request_id", "query_id", "relevance"])
    key = "request_id" if "request_id" in source else "query_id"
    if key not in source:
        raise RawLogError(f"{source.label}: a file of candidates needs a column 'request_id' or 'query_id' beside 'item_id'")
    key_value, key_checks = identifier(source, key, kinds[key], data.zero_id)
    item_value, item_checks = identifier(source, "item_id", kinds["item_id"], data.zero_id)
    relevance, checks = "NULL", [*key_checks, *item_checks]
    if key == "query_id" and "relevance" in source:
        relevance, grade_checks = _grade(source, data.levels)
        checks += grade_checks
    rows = check_rows(con, source, checks)
    if not rows:
        raise RawLogError(f"{source.label}: no rows; give at least one candidate")
    columns = f"{key_value} AS key, {item_value} AS item_id, {relevance} AS relevance"
    con.execute(f"CREATE TABLE given AS SELECT {columns} FROM {source.scan()}")
    _drop_without(con, source, "given", {key: "key", "item_id": "item_id"}, drops)
    _refuse_duplicates(con, source, "given", {key: "key", "item_id": "item_id"}, {key: key_value, "item_id": item_value})
    owner = "requests" if key == "request_id" else "(SELECT query_id, rowid AS query FROM queries)"
    known = {key: ("key", owner, key), "item_id": ("item_id", "items", "item_id")}
    _count_unknown(con, source, "given", known, {key: key_value, "item_id": item_value}, drops)
    if key == "request_id":
        matched = """SELECT r.*, 0 AS part, i.rowid AS item, j.relevance, coalesce(p.predicted, 0) AS predicted
            FROM given g JOIN requests r ON r.request_id = g.key JOIN items i USING (item_id)
            LEFT JOIN graded j ON j.query = r.query AND j.item = i.rowid
            LEFT JOIN predicted p ON p.query = r.query AND p.item = i.rowid"""
    else:
        matched = f"""SELECT *, {PART} AS part FROM (
            SELECT q.query_id AS request_id, 0 AS timestamp, 0 AS user_id, q.rowid AS query, i.rowid AS item,
                g.relevance::FLOAT AS relevance, 0::BIGINT AS predicted
            FROM given g JOIN queries q ON q.query_id = g.key JOIN items i USING (item_id))"""
    con.execute(f"CREATE TABLE candidates AS {matched}")
    con.execute("DROP TABLE given")


def _load_entities(
    con: Connection, source: Source, key: str, kinds: Kinds, data: DataConfig, text_column: str | None, attributes: list[str],
    drops: dict[str, int],
) -> int:  # fmt: skip
    """Makes table items, queries or users, sorted by id; rows without one are of no use."""
    value, checks = identifier(source, key, kinds[key], data.zero_id)
    columns = [f"{value} AS {key}"] + ([f"{text(source, text_column)} AS {text_column}"] if text_column else [])
    for name in attributes:
        expression, more = attribute(source, name, kinds[name], data.zero_id)
        columns.append(f"{expression} AS {quote(name)}")
        checks += more
    rows = check_rows(con, source, checks)
    known = f"{value} <> 0" if key == "user_id" else f"{value} IS NOT NULL"
    con.execute(f"CREATE TABLE {source.name} AS SELECT {', '.join(columns)} FROM {source.scan()} WHERE {known} ORDER BY 1")
    drops[f"{source.name} without {key}"] = rows - one_row(con, f"SELECT count(*) FROM {source.name}")[0]
    _refuse_duplicates(con, source, source.name, {key: key}, {key: value})
    return rows


def _load_judgments(
    con: Connection, sources: dict[str, Source], kinds: Kinds, data: DataConfig, drops: dict[str, int], mended: dict[str, int]
) -> int:
    """Makes tables judgments and graded."""
    source = sources.get("judgments")
    if source is None:
        con.execute("CREATE TABLE judgments (query BIGINT, item BIGINT, relevance FLOAT)")
        con.execute("CREATE TABLE graded AS FROM judgments")
        return 0
    query, query_checks = identifier(source, "query_id", kinds["query_id"], data.zero_id)
    item, item_checks = identifier(source, "item_id", kinds["item_id"], data.zero_id)
    grade, grade_checks = _grade(source, data.levels)
    rows = check_rows(con, source, [*query_checks, *item_checks, *grade_checks])
    columns, both = f"{query} AS query_id, {item} AS item_id, {grade} AS relevance", f"{query} IS NOT NULL AND {item} IS NOT NULL"
    (known,) = one_row(con, f"SELECT count(*) FROM {source.scan()} WHERE {both}")
    con.execute(f"CREATE TABLE grades AS SELECT DISTINCT {columns} FROM {source.scan()} WHERE {both}")
    two = con.execute("SELECT query_id, item_id FROM grades GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1").fetchall()
    for query_id, item_id in two:
        found = find_rows(con, source, "relevance", f"{query} = {query_id} AND {item} = {item_id}", 2)
        given = " and ".join(str(value) for _, _, value in found)
        raise RawLogError(f"{describe_rows(found)} grade the same (query_id, item_id) with {given}; a pair has one grade")
    match_ids(con, "grades", sources, source, {"query_id": query, "item_id": item}, kinds, data, mended)
    joined = "FROM grades JOIN queries q USING (query_id) JOIN items i USING (item_id) WHERE relevance IS NOT NULL"
    null, kept = one_row(con, f"SELECT count(*) FILTER (WHERE relevance IS NULL), (SELECT count(*) {joined}) FROM grades")
    con.execute(  # the mean, of pairs that are one since their ids were matched
        "CREATE TABLE judgments AS SELECT q.rowid AS query, i.rowid AS item, avg(relevance ORDER BY relevance)::FLOAT AS "
        f"relevance {joined} GROUP BY ALL ORDER BY 1, 2"
    )
    all_grades = one_row(con, "SELECT count(*) FROM grades")[0]
    drops["judgments without a query or item"] = rows - known
    drops["judgments without a grade"] = null
    drops["judgments of an unknown query or item"] = all_grades - null - kept
    drops["judgments given twice"] = known - all_grades
    con.execute("DROP TABLE grades")
    mended["pairs graded as their query is elsewhere, in other case or blanks"] = share_grades(con)
    return rows


def _mean_grades(con: Connection, levels: Levels) -> list[float | None]:
    """(K,) of the judgments of each level."""
    means = f"SELECT {_level('relevance', levels)} AS level, avg(relevance) FROM judgments GROUP BY 1"
    found = dict(con.execute(means).fetchall())
    return [found.get(level) for level in range(1, levels.count + 1)]


def _add_groups(con: Connection, data: DataConfig, *, from_column: bool) -> None:
    if data.query_group is None:
        con.execute("ALTER TABLE queries ADD COLUMN group_id BIGINT DEFAULT 0")
        return
    group = quote(data.query_group)
    if from_column:
        con.execute(f"ALTER TABLE queries RENAME COLUMN {group} TO group_id")
        return
    judged = f"SELECT j.query, i.{group} AS value FROM judgments j JOIN items i ON i.rowid = j.item WHERE value <> 0"
    counted = f"SELECT query, value, count(*) AS n FROM ({judged}) GROUP BY ALL"
    modal = f"SELECT query, value FROM ({counted}) QUALIFY row_number() OVER (PARTITION BY query ORDER BY n DESC, value) = 1"
    con.execute(
        "CREATE TABLE grouped AS SELECT q.query_id, q.query, coalesce(m.value, 0) AS group_id "
        f"FROM queries q LEFT JOIN ({modal}) m ON m.query = q.rowid ORDER BY 1"
    )
    con.execute("DROP TABLE queries")
    con.execute("ALTER TABLE grouped RENAME TO queries")


def _load_events(
    con: Connection, sources: dict[str, Source], kinds: Kinds, data: DataConfig, drops: dict[str, int], mended: dict[str, int]
) -> tuple[int, int]:
    """Makes tables events and requests; returns the rows of the files, and what their positions count from."""
    source, values = sources["impressions"], dict[str, str]()
    checks: list[Check] = []
    for name in ("request_id", "user_id", "query_id", "item_id"):
        values[name], more = identifier(source, name, kinds[name], data.zero_id)
        checks += more
    values["user_id"] = f"coalesce({values['user_id']}, 0)"
    values["timestamp"], more = whole_number(source, "timestamp", 0, 10**11, "whole seconds, not negative and no milliseconds")
    checks += more
    values["click"], more = whole_number(source, "click", 0, 1, "0 or 1")
    checks += more
    values["position"] = "NULL::BIGINT"
    if "position" in source:
        expected = f"a position in 1..{MAX_POSITION}, or null or 0 where not logged"
        position, (check,) = whole_number(source, "position", 0, MAX_POSITION, expected)
        values["position"] = position
        checks.append(Check(check.column, f"({source.sql('position')} IS NOT NULL AND {check.bad})", check.expected))
    rows = check_rows(con, source, checks)
    if not rows:
        raise RawLogError(f"{source.files[0]}: the log is empty; impressions need at least one row")
    con.execute(f"CREATE TABLE impressions AS SELECT {', '.join(f'{v} AS {k}' for k, v in values.items())} FROM {source.scan()}")
    _drop_without(con, source, "impressions", {key: key for key in ("request_id", "query_id", "item_id")}, drops)
    key = ("request_id", "item_id")
    _refuse_duplicates(con, source, "impressions", {k: k for k in key}, {k: values[k] for k in key})
    _refuse_mixed_requests(con, source, values)
    positions_from = raise_positions(con, data.positions_from)
    if match_ids(con, "impressions", sources, source, values, kinds, data, mended):
        firsts = "SELECT min(rowid) FROM impressions GROUP BY request_id, item_id"
        (twice,) = one_row(con, f"DELETE FROM impressions WHERE rowid NOT IN ({firsts})")
        drops["impressions given twice, in other case or blanks"] = twice
    known = {"query_id": ("query_id", "queries", "query_id"), "item_id": ("item_id", "items", "item_id")}
    _count_unknown(con, source, "impressions", known, values, drops)
    con.execute(
        f"""CREATE TABLE events AS SELECT request_id, timestamp, user_id, q.rowid AS query, q.group_id, i.rowid AS item,
            coalesce(position, 0)::SMALLINT AS position, click::TINYINT AS click,
            coalesce(j.relevance, 'nan'::FLOAT) AS relevance,
            {_level("j.relevance", data.levels)}::TINYINT AS level, coalesce(p.predicted, 0) AS predicted
        FROM impressions JOIN queries q USING (query_id) JOIN items i USING (item_id)
        LEFT JOIN graded j ON j.query = q.rowid AND j.item = i.rowid
        LEFT JOIN predicted p ON p.query = q.rowid AND p.item = i.rowid"""
    )
    con.execute("DROP TABLE impressions")
    con.execute("CREATE TABLE requests AS SELECT DISTINCT request_id, timestamp, user_id, query FROM events")
    return rows, positions_from


def _grade(source: Source, levels: Levels) -> tuple[str, list[Check]]:
    low, high = levels.grade_min, levels.grade_max
    return number(source, "relevance", low, high, f"a grade in {low}..{high} (data.levels.grade_min and grade_max), or null")


def _level(relevance: str, levels: Levels) -> str:
    """The level of a grade in 1..K, 0 for none. Compared in float32, as the grade is stored."""
    cases = " ".join(f"WHEN {relevance} <= {bound}::FLOAT THEN {k}" for k, bound in enumerate(levels.boundaries, 1))
    return f"(CASE WHEN {relevance} IS NULL THEN 0 {cases} ELSE {levels.count} END)"


def _refuse_duplicates(con: Connection, source: Source, table: str, keys: dict[str, str], values: dict[str, str]) -> None:
    """`keys`: our column -> the table's column; `values`: our column -> SQL over the files' columns."""
    columns = ", ".join(keys.values())
    twice = con.execute(f"SELECT {columns} FROM {table} GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL LIMIT 1").fetchall()
    if not twice:
        return
    condition = " AND ".join(f"{values[name]} = {value}" for name, value in zip(keys, twice[0], strict=True))
    shown = [find_rows(con, source, name, condition, 2) for name in keys]
    pair = ", ".join(repr(found[0][2]) for found in shown)
    raise RawLogError(f"{describe_rows(shown[0])} have the same ({', '.join(keys)}) = ({pair}); it may be there only once")


def _refuse_mixed_requests(con: Connection, source: Source, values: dict[str, str]) -> None:
    for column in ("timestamp", "user_id", "query_id"):
        mixed = con.execute(
            f"SELECT request_id, min({column}), max({column}) FROM impressions GROUP BY request_id "
            f"HAVING min({column}) <> max({column}) ORDER BY 1 LIMIT 1"
        ).fetchall()
        for request_id, *different in mixed:
            rows = f"{values['request_id']} = {request_id}"
            ends = [find_rows(con, source, column, f"{rows} AND {values[column]} = {value}", 1)[0] for value in different]
            request = find_rows(con, source, "request_id", rows, 1)[0][2]
            raise RawLogError(
                f"{describe_rows(ends)} belong to one request, {request!r}, but differ in {source.columns[column]!r}: "
                f"{ends[0][2]!r} and {ends[1][2]!r}; the rows of a request share timestamp, user and query"
            )


def _drop_without(con: Connection, source: Source, table: str, keys: dict[str, str], drops: dict[str, int]) -> None:
    """Drops rows without an id; `keys`: our column -> the table's column.

    Raises:
        RawLogError: more than half would be dropped; names the first.
    """
    rows = one_row(con, f"SELECT count(*) FROM {table}")[0]
    for column, key in keys.items():
        (dropped,) = one_row(con, f"DELETE FROM {table} WHERE {key} IS NULL")
        if dropped * 2 > rows:
            file, row, _ = find_rows(con, source, column, f"{source.sql(column)} IS NULL", 1)[0]
            where = f"{file}: column {source.columns[column]!r}, row {row}"
            raise RawLogError(
                f"{where}: None; expected an id, which {dropped} of {rows} rows lack; up to half are dropped and counted"
            )
        drops[f"{source.name} without {column}"] = dropped


def _count_unknown(
    con: Connection,
    source: Source,
    table: str,
    keys: dict[str, tuple[str, str, str]],
    values: dict[str, str],
    drops: dict[str, int],
) -> None:
    """Counts rows whose id is in no table.

    Args:
        keys: our column -> (column of `table`, owning table, its column).
        values: our column -> SQL over the files' columns.
    """
    rows = one_row(con, f"SELECT count(*) FROM {table}")[0]
    for name, (column, owner, owner_column) in keys.items():
        missing = f"FROM {table} t ANTI JOIN {owner} o ON o.{owner_column} = t.{column}"
        unknown, example = one_row(con, f"SELECT count(*), min(t.{column}) {missing}")
        if unknown * 2 > rows:
            example = find_rows(con, source, name, f"{values[name]} = {example}", 1)[0][2]
            raise RawLogError(
                f"{source.label}: {unknown} of {rows} rows have a {name} that is unknown (such as {example!r}); "
                f"are these the files of one log? Up to half would be dropped and counted"
            )
        drops[f"{source.name} of an unknown {name.removesuffix('_id')}"] = unknown
