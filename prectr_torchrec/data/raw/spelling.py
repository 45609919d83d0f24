"""Rows that belong together though their texts differ in case and blanks: ids of text, and queries of one text."""

from __future__ import annotations

from collections.abc import Mapping

from prectr_torchrec.data.hashing import normalised_sql
from prectr_torchrec.data.raw.readings import IdKind
from prectr_torchrec.data.raw.source import Connection, Table, one_row


def match_ids(
    con: Connection, name: str, table: Table, tables: Mapping[str, Table], kinds: Mapping[str, IdKind], mended: dict[str, int]
) -> int:
    """Matches the ids of text among a table's ids of queries and items with those that these have.

    Args:
        con: with table `name`, queries and items.
        name: of the table to mend.
        table: what it was made from.
        tables: what queries and items were made from.
        kinds: how each column of ids is read.
        mended: filled with the number of rows.

    Returns:
        How many rows were mended.
    """
    rows = 0
    for column, owner in (("query_id", "queries"), ("item_id", "items")):
        if kinds[column] == "text":
            found = _match(con, name, column, table, owner, tables[owner])
            mended[f"{table.source.name} whose {column} differs from that of {owner} in case or blanks"] = found
            rows += found
    return rows


def share_grades(con: Connection) -> int:
    """Makes table graded(query, item, relevance): the judgments, and those of queries whose texts differ in case and blanks.

    A pair's own grade wins; of several others it is their mean.

    Returns:
        How many pairs have the grade of another query.
    """
    texts = f"SELECT rowid AS query, {normalised_sql('query')} AS text FROM queries"
    con.execute(
        f"""CREATE TABLE graded AS WITH twins AS (
            SELECT * FROM ({texts}) WHERE text <> '' QUALIFY count(*) OVER (PARTITION BY text) > 1),
        others AS (SELECT b.query, j.item, avg(j.relevance ORDER BY j.relevance)::FLOAT AS relevance
            FROM judgments j JOIN twins a USING (query) JOIN twins b ON b.text = a.text AND b.query <> a.query GROUP BY ALL)
        SELECT query, item, relevance FROM judgments
        UNION ALL SELECT query, item, relevance FROM others ANTI JOIN judgments USING (query, item)"""
    )
    return int(one_row(con, "SELECT (SELECT count(*) FROM graded) - (SELECT count(*) FROM judgments)")[0])


def _match(con: Connection, name: str, column: str, table: Table, owner: str, of_owner: Table) -> int:
    """Gives rows whose id of text is nobody's the id that differs from it in case and blanks alone, where there is just one."""
    unknown = f"SELECT {column} FROM {name} ANTI JOIN {owner} USING ({column})"
    if not one_row(con, f"SELECT count(*) FROM ({unknown})")[0]:
        return 0
    theirs, ours = (
        f"SELECT DISTINCT id AS {id_}, {normalised_sql('text')} AS text FROM ({t.select_ids(column)})"
        for id_, t in (("unknown", table), ("known", of_owner))
    )
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE spelling AS SELECT unknown, any_value(known) AS known
        FROM ({theirs}) t SEMI JOIN ({unknown}) u ON u.{column} = t.unknown JOIN ({ours}) o USING (text)
        GROUP BY unknown HAVING count(*) = 1"""
    )
    (mended,) = one_row(con, f"SELECT count(*) FROM {name} SEMI JOIN spelling ON unknown = {column}")
    con.execute(f"UPDATE {name} SET {column} = known FROM spelling WHERE {column} = unknown")
    con.execute("DROP TABLE spelling")
    return int(mended)
