"""The raw log as checked DuckDB tables with dense item and query numbers.

Tables made here, all sorted and complete:
    items(item_id, title, <declared>) and queries(query_id, query, group_id, <declared>); their `rowid` is the dense
        number, and declared columns are called as `Source.stored` says;
    item_versions(version, item_id, title, <declared>, valid_from), where `data.valid_from` is set: all rows of each item, of
        which items have the latest, with `first_version` and `last_version`;
    users(user_id, <declared>);
    judgments(query, item, relevance), and graded likewise, with the grades that queries of the same text share;
    predicted(query, item, predicted), packed as in `predicted.py`, of pairs without a grade;
    events(request_id, timestamp, user_id, query, group_id, item, position, click, relevance, level, predicted, <declared>,
        <known>, <weight>, <version>), user 0 where nobody is known, relevance NaN and level 0 without grade, predicted 0 without
        prediction; <known> is what `known_columns` says, 0 of what did not happen; <weight> is `sample_weight`, where
        `data.weight` names it; <version> is `version`, where items have such;
    requests(request_id, timestamp, user_id, query, <declared>).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prectr_torchrec.config.columns import IdColumn, IdsColumn
from prectr_torchrec.config.data import DataConfig, Levels, RawLog, RawTable
from prectr_torchrec.data.column_kinds import Grade, Label
from prectr_torchrec.data.columns import SAMPLE_WEIGHT, declared_columns, declared_of, ids_of_weights, stored_name
from prectr_torchrec.data.raw.actions import COLUMNS, labels_of_actions, link_actions, may_be_actions
from prectr_torchrec.data.raw.files import find_files
from prectr_torchrec.data.raw.id_kinds import IdColumns, count_zeros, id_kinds, mixed_ids
from prectr_torchrec.data.raw.labels import known_columns, link_labels, time_columns
from prectr_torchrec.data.raw.loading import (
    SPELLING,
    Kinds,
    Loaded,
    check_sources,
    count_unknown,
    drop_without,
    load_sources,
    refuse_duplicates,
)
from prectr_torchrec.data.raw.positions import raise_positions
from prectr_torchrec.data.raw.predicted import load_predicted
from prectr_torchrec.data.raw.readings import identifier
from prectr_torchrec.data.raw.search_results import RESULTS, SEARCHES, SearchResults, raw_table, shown_items
from prectr_torchrec.data.raw.source import (
    Connection,
    Problems,
    RawLogError,
    Source,
    Table,
    one_row,
    open_source,
)
from prectr_torchrec.data.raw.spelling import match_ids, share_grades
from prectr_torchrec.data.raw.versions import VERSION, count_early, version_at
from prectr_torchrec.system.errors import nearest

MAX_JUDGED = 64
"""Items of one row without a user; a query with more takes several rows, `part` 0, 1, ..."""
PART = f"(row_number() OVER (PARTITION BY query ORDER BY item) - 1) // {MAX_JUDGED}"


def open_sources(con: Connection, data: DataConfig, raw: Path) -> dict[str, Source]:
    """The raw tables that are there, by name. Columns are looked for; rows are read only where that fails, to say all at once.

    Raises:
        RawLogError: a file or column that the configuration needs is missing.
    """
    log, problems = data.raw, Problems()
    sources: dict[str, Source] = {}

    def open_table(name: str, table: RawTable, required: list[str], optional: Sequence[str] = ()) -> None:
        with problems.collecting():
            files = find_files(name, table, raw)
            try:
                sources[name] = open_source(con, name, table, files, required, optional)
            except RawLogError:
                with contextlib.suppress(RawLogError):  # what is there can be looked at all the same
                    sources[name] = open_source(con, name, table, files, [], [*required, *optional])
                raise

    def exists(name: str, table: RawTable | None) -> bool:
        with problems.collecting():
            return table is not None and bool(find_files(name, table, raw, optional=True))
        return False

    declared: dict[str, list[str]] = {name: [] for name in RawLog.model_fields}
    for column in declared_columns(data):
        declared[raw_table(data, column.source)].append(column.source.column)
    judgments = log.judgments and _with_query_texts(log, log.judgments)
    of_requests, of_items = ["timestamp", "user_id", "query_id"], _of_shown_items(data, declared)
    acted = may_be_actions(data)
    if log.searches and log.results:
        open_table(SEARCHES, _with_query_texts(log, log.searches), ["request_id", *of_requests, *declared[SEARCHES]])
        open_table(RESULTS, log.results, ["request_id", *of_items], ["position", *acted])
    else:
        impressions = _with_query_texts(log, log.impressions)
        open_table("impressions", impressions, ["request_id", *of_requests, *of_items], ["position", *acted])
    if log.actions:
        open_table("actions", log.actions, [*COLUMNS])
    open_table("items", log.items, ["item_id", "title", *declared["items"], *filter(None, [data.valid_from])])
    if log.queries:
        group = [data.query_group] if data.query_group else []
        open_table("queries", log.queries, ["query_id", "query", *declared["queries"]], group)
    elif searched := next((s for s in sources.values() if "query_id" in s), None):
        sources["queries"] = Source("queries", searched.parts, dict.fromkeys(("query_id", "query"), searched.columns["query_id"]))
    if judgments and exists("judgments", judgments):
        open_table("judgments", judgments, ["query_id", "item_id", "relevance"])
    if log.users and (declared["users"] or exists("users", log.users)):
        open_table("users", log.users, ["user_id", *declared["users"]])
    elif declared["users"]:
        problems.found.append(
            f"data.raw.users is null, and columns of users are wanted: {', '.join(declared['users'])}; name the users file"
        )
    _keep_spellings(log, sources)
    with problems.collecting():
        _check_group(data, sources)
    if problems.found:
        with problems.collecting():
            check_sources(con, data, sources, _id_kinds(con, data, sources))
    problems.refuse()
    return sources


def _keep_spellings(log: RawLog, sources: dict[str, Source]) -> None:
    """Where queries are their texts, judgments are read with these too."""
    graded = sources.get("judgments")
    if not log.queries and graded and "query_id" in graded:
        sources["judgments"] = replace(graded, columns={**graded.columns, SPELLING: graded.columns["query_id"]})


def _of_shown_items(data: DataConfig, declared: dict[str, list[str]]) -> list[str]:
    """Columns that have to be there of each shown item, but for the id of its request."""
    weights = [data.weight] if data.weight else []
    columns = ["item_id", "click", *declared["impressions"], *declared[RESULTS], *time_columns(data), *weights]
    return [column for column in columns if column not in may_be_actions(data)]


def _check_group(data: DataConfig, sources: dict[str, Source]) -> None:
    queries, group = sources.get("queries"), data.query_group
    if queries and group and group not in queries and group not in data.ids_of("items"):
        hint = nearest(group, data.ids_of("items"))
        raise RawLogError(
            f"data.query_group: {group!r} is neither a column of {queries.label} nor in data.item_attributes{hint}; set it to "
            "one of these, or to null for no fallback"
        )


def load_tables(con: Connection, data: DataConfig, sources: dict[str, Source], scores: Sequence[Path] = ()) -> dict[str, Any]:
    """Checks every row and makes the tables; returns what to report: id kinds, row counts, drops, what was mended, oddities.

    Args:
        con: connection to fill.
        data: the configuration.
        sources: from `open_sources`.
        scores: files of soft grades, from `find_scores`.

    Raises:
        RawLogError: rows that cannot be used; the message names the first of each kind.
    """
    kinds = _id_kinds(con, data, sources)
    drops: dict[str, int] = {}
    mended: dict[str, int] = {}
    loaded = load_sources(con, data, sources, kinds, drops, mended)
    if RESULTS in loaded.tables:
        _join_results(con, loaded, drops)
    acted = labels_of_actions(data, shown_items(sources))
    if acted:
        link_actions(con, loaded.tables["actions"], acted, drops)
    link_labels(con, loaded.tables["impressions"], data, acted, mended)
    _link_judgments(con, loaded, kinds, drops, mended)
    _add_groups(con, data, from_column=data.query_group is not None and data.query_group in sources["queries"])
    rows, problems = loaded.rows, Problems()
    predicted = load_predicted(con, scores, data.levels.count)
    if scores and not predicted:
        problems.found.append(f"{scores[0].parent}: grades no pair of this log that has no grade; are these pairs of this log?")
    if scores:
        rows["predicted pairs"] = predicted
    positions_from = raise_positions(con, data.positions_from)
    with problems.collecting():
        _link_events(con, loaded, kinds, data, drops, mended)
    problems.refuse()
    findings = {
        "level_grades": _mean_grades(con, data.levels),
        "positions_from": positions_from,
        "zeros": _count_zeros(con, data, sources, kinds) if data.zero_id == "none" else {},
        "mixed_ids": mixed_ids(con, list(sources.values()), _id_columns(data, separated=False), kinds),
    }
    drops, mended = ({what: count for what, count in counts.items() if count} for counts in (drops, mended))
    return {"id_kinds": kinds, "rows": rows, "dropped": drops, "mended": mended, **findings}


def _join_results(con: Connection, loaded: Loaded, drops: dict[str, int]) -> None:
    """Makes table impressions of searches and results; those of an unknown search, and searches without results, are counted."""
    searches, results = loaded.tables[SEARCHES], loaded.tables[RESULTS]
    count_unknown(con, results, RESULTS, {"request_id": (SEARCHES, searches.source.label)}, drops)
    (drops["searches without results"],) = one_row(con, f"SELECT count(*) FROM {SEARCHES} ANTI JOIN {RESULTS} USING (request_id)")
    con.execute(f"CREATE TABLE impressions AS SELECT * FROM {RESULTS} JOIN {SEARCHES} USING (request_id)")
    con.execute(f"DROP TABLE {RESULTS}; DROP TABLE {SEARCHES}")
    loaded.tables["impressions"] = SearchResults(searches, results)


def _with_query_texts(log: RawLog, table: RawTable) -> RawTable:
    """Where queries are their texts, these are their ids."""
    if log.queries:
        return table
    return table.model_copy(update={"columns": {"query_id": table.columns.get("query", "query"), **table.columns}})


def _id_kinds(con: Connection, data: DataConfig, sources: dict[str, Source]) -> Kinds:
    kinds = id_kinds(con, list(sources.values()), _id_columns(data), _separated(data))
    return kinds if data.raw.queries else {**kinds, "query_id": "normalised"}


def _id_columns(data: DataConfig, *, separated: bool = True) -> IdColumns:
    """Columns of ids by the tables that have them; `separated`: those of text with a separator too."""
    group = [data.query_group] if data.query_group else []
    found = {
        "request_id": {"impressions", SEARCHES, RESULTS, "actions"},
        "user_id": {"impressions", SEARCHES, "users"},
        "query_id": {"impressions", SEARCHES, "queries", "judgments"},
        "item_id": {"impressions", RESULTS, "items", "judgments", "actions"},
    }
    for name in group:
        found.setdefault(name, set()).add("queries")
    lists = (column for column, ids in declared_of(data, IdsColumn) if separated or ids.separator is None)
    for column in (*(column for column, _ in declared_of(data, IdColumn)), *lists):
        found.setdefault(column.source.column, set()).add(raw_table(data, column.source))
    return found


def _separated(data: DataConfig) -> list[str]:
    """Columns of ids that text with a separator may hold."""
    return [column.source.column for column, ids in declared_of(data, IdsColumn) if ids.separator is not None]


def _count_zeros(con: Connection, data: DataConfig, sources: dict[str, Source], kinds: Kinds) -> dict[str, int]:
    group = [data.query_group] if data.query_group else []
    columns = {name: ["user_id"] for name in ("impressions", SEARCHES)} | {RESULTS: []}
    columns |= {"items": ["item_id"], "queries": ["query_id", *group], "users": []}
    for column, _ in declared_of(data, IdColumn):
        columns[raw_table(data, column.source)].append(column.source.column)
    found = (count_zeros(con, source, columns.get(name, ()), kinds) for name, source in sources.items())
    return {column: count for counts in found for column, count in counts.items()}


def load_candidates(con: Connection, files: tuple[Path, ...], kinds: Kinds, data: DataConfig, drops: dict[str, int]) -> str:
    """Makes table `candidates` from candidate sets: request_id, timestamp, user_id, query, part, item, relevance, predicted and
    the declared columns of requests and impressions.

    Their files have `request_id, item_id` (requests of the log) or `query_id, item_id[, relevance]` (queries alone), and may have
    the declared columns of impressions by their names; what they lack is missing.

    Returns:
        Which of the two ids they have.

    Raises:
        RawLogError: a row that cannot be used, or candidates of which more than half are unknown.
    """
    declared = declared_columns(data, "events", id_kinds=kinds)
    own = [column for column in declared if not isinstance(column.kind, Label)]
    optional = ["request_id", "query_id", "relevance", *(column.source.column for column in own)]
    source = open_source(con, "candidates", RawTable(path=""), files, ["item_id"], optional)
    there = [column for column in own if column.source.column in source]
    key = "request_id" if "request_id" in source else "query_id"
    if key not in source:
        raise RawLogError(f"{source.label}: a file of candidates needs a column 'request_id' or 'query_id' beside 'item_id'")
    readings = {key: identifier(kinds[key], None if key == "request_id" else data.zero_id)}
    readings["item_id"] = identifier(kinds["item_id"], data.zero_id)
    graded = key == "query_id" and "relevance" in source
    readings |= {"relevance": Grade(data.levels).raw()} if graded else {}
    readings |= {column.source.column: column.kind.raw() for column in there}
    names = {key: "key"} | {column.source.column: column.source.stored for column in there}
    table = Table(source, readings, names, ids_of_weights(there))
    if not table.check(con):
        raise RawLogError(f"{source.label}: no rows; give at least one candidate")
    values = "".join(
        f", {column.source.stored if column in there else f'{column.kind.missing} AS {column.source.stored}'}"
        for column in declared
    )
    grade = f"{'' if graded else 'NULL AS '}relevance"
    con.execute(f"CREATE TABLE given AS SELECT key, item_id, {grade}{values} FROM ({table.select()})")
    stored = "".join(f", g.{column.source.stored}" for column in declared)
    drop_without(con, table, "given", (key, "item_id"), drops)
    refuse_duplicates(con, table, "given", (key, "item_id"))
    owner = "requests" if key == "request_id" else "(SELECT query_id, rowid AS query FROM queries)"
    count_unknown(con, table, "given", {key: (owner, "the log"), "item_id": ("items", "the log")}, drops)
    if key == "request_id":
        version, versions = version_at(data, "r.timestamp")
        matched = f"""SELECT r.*, 0 AS part, i.rowid AS item, j.relevance, coalesce(p.predicted, 0) AS predicted{stored}{version}
            FROM given g JOIN requests r ON r.request_id = g.key JOIN items i USING (item_id) {versions}
            LEFT JOIN graded j ON j.query = r.query AND j.item = i.rowid
            LEFT JOIN predicted p ON p.query = r.query AND p.item = i.rowid"""
    else:
        version = f", i.last_version AS {VERSION}" if data.valid_from else ""
        unknown = "".join(f", {c.kind.missing} AS {c.source.stored}" for c in declared_columns(data, "requests"))
        matched = f"""SELECT *, {PART} AS part FROM (
            SELECT q.query_id AS request_id, 0 AS timestamp, 0 AS user_id, q.rowid AS query, i.rowid AS item,
                g.relevance::FLOAT AS relevance, 0::BIGINT AS predicted{unknown}{stored}{version}
            FROM given g JOIN queries q ON q.query_id = g.key JOIN items i USING (item_id))"""
    con.execute(f"CREATE TABLE candidates AS {matched}")
    con.execute("DROP TABLE given")
    return key


def _link_judgments(con: Connection, loaded: Loaded, kinds: Kinds, drops: dict[str, int], mended: dict[str, int]) -> None:
    """Makes tables judgments and graded of the grades."""
    table = loaded.tables.get("judgments")
    if table is None:
        con.execute("CREATE TABLE judgments (query BIGINT, item BIGINT, relevance FLOAT)")
        con.execute("CREATE TABLE graded AS FROM judgments")
        return
    match_ids(con, "grades", table, loaded.tables, kinds, mended)
    joined = "FROM grades JOIN queries q USING (query_id) JOIN items i USING (item_id) WHERE relevance IS NOT NULL"
    null, kept = one_row(con, f"SELECT count(*) FILTER (WHERE relevance IS NULL), (SELECT count(*) {joined}) FROM grades")
    con.execute(  # the mean, of pairs that are one since their ids were matched
        "CREATE TABLE judgments AS SELECT q.rowid AS query, i.rowid AS item, avg(relevance ORDER BY relevance)::FLOAT AS "
        f"relevance {joined} GROUP BY ALL ORDER BY 1, 2"
    )
    drops["judgments without a grade"] = null
    drops["judgments of an unknown query or item"] = one_row(con, "SELECT count(*) FROM grades")[0] - null - kept
    con.execute("DROP TABLE grades")
    mended["pairs graded as their query is elsewhere, in other case or blanks"] = share_grades(con)


def _mean_grades(con: Connection, levels: Levels) -> list[float | None]:
    """(K,) of the judgments of each level."""
    means = f"SELECT {_level('relevance', levels)} AS level, avg(relevance) FROM judgments GROUP BY 1"
    found = dict(con.execute(means).fetchall())
    return [found.get(level) for level in range(1, levels.count + 1)]


def _add_groups(con: Connection, data: DataConfig, *, from_column: bool) -> None:
    if data.query_group is None:
        con.execute("ALTER TABLE queries ADD COLUMN group_id BIGINT DEFAULT 0")
        return
    if from_column:
        return
    group = stored_name(data, "items", data.query_group)
    judged = f"SELECT j.query, i.{group} AS value FROM graded j JOIN items i ON i.rowid = j.item WHERE value <> 0"
    counted = f"SELECT query, value, count(*) AS n FROM ({judged}) GROUP BY ALL"
    modal = f"SELECT query, value FROM ({counted}) QUALIFY row_number() OVER (PARTITION BY query ORDER BY n DESC, value) = 1"
    con.execute(
        "CREATE TABLE grouped AS SELECT q.*, coalesce(m.value, 0) AS group_id "
        f"FROM queries q LEFT JOIN ({modal}) m ON m.query = q.rowid ORDER BY 1"
    )
    con.execute("DROP TABLE queries")
    con.execute("ALTER TABLE grouped RENAME TO queries")


def _link_events(
    con: Connection, loaded: Loaded, kinds: Kinds, data: DataConfig, drops: dict[str, int], mended: dict[str, int]
) -> None:
    """Makes tables events and requests of the impressions."""
    table = loaded.tables["impressions"]
    if match_ids(con, "impressions", table, loaded.tables, kinds, mended):
        firsts = "SELECT min(rowid) FROM impressions GROUP BY request_id, item_id"
        (twice,) = one_row(con, f"DELETE FROM impressions WHERE rowid NOT IN ({firsts})")
        drops["impressions given twice, in other case or blanks"] = twice
    owners = {
        f"{name}_id": (owner, loaded.tables[owner].source.label) for name, owner in (("query", "queries"), ("item", "items"))
    }
    count_unknown(con, table, "impressions", owners, drops)
    of_request, declared = (
        "".join(f", {how.format(column.source.stored)}" for column in declared_columns(data, *tables))
        for how, tables in (("max({0}) AS {0}", ("requests",)), ("{}", ("requests", "events")))
    )
    version, versions = version_at(data, "impressions.timestamp")
    known = "".join(f", coalesce({column}, 0) AS {column}" for column in known_columns(data))
    weight = f", {SAMPLE_WEIGHT}" if data.weight else ""
    con.execute(
        f"""CREATE TABLE events AS SELECT request_id, timestamp, user_id, q.rowid AS query, q.group_id, i.rowid AS item,
            coalesce(position, 0)::SMALLINT AS position, click::TINYINT AS click,
            coalesce(j.relevance, 'nan'::FLOAT) AS relevance,
            {_level("j.relevance", data.levels)}::TINYINT AS level, coalesce(p.predicted, 0) AS predicted{declared}{known}{weight}
            {version}
        FROM impressions JOIN queries q USING (query_id) JOIN items i USING (item_id) {versions}
        LEFT JOIN graded j ON j.query = q.rowid AND j.item = i.rowid
        LEFT JOIN predicted p ON p.query = q.rowid AND p.item = i.rowid"""
    )
    con.execute("DROP TABLE impressions")
    count_early(con, data, mended)
    con.execute(f"CREATE TABLE requests AS SELECT request_id, timestamp, user_id, query{of_request} FROM events GROUP BY ALL")


def _level(relevance: str, levels: Levels) -> str:
    """The level of a grade in 1..K, 0 for none. Compared in float32, as the grade is stored."""
    cases = " ".join(f"WHEN {relevance} <= {bound}::FLOAT THEN {k}" for k, bound in enumerate(levels.boundaries, 1))
    return f"(CASE WHEN {relevance} IS NULL THEN 0 {cases} ELSE {levels.count} END)"
