"""Rows that belong together though their texts differ in case and blanks: ids of text, and queries of one text."""

from __future__ import annotations

from collections.abc import Mapping

from prectr_torchrec.config import DataConfig
from prectr_torchrec.data.hashing import normalised_sql
from prectr_torchrec.data.raw import Connection, IdKind, Source, identifier, one_row


def match_ids(
    con: Connection, table: str, sources: dict[str, Source], source: Source, values: dict[str, str], kinds: Mapping[str, IdKind],
    data: DataConfig, mended: dict[str, int],
) -> int:  # fmt: skip
    """`_match` of the columns of text among a table's ids of queries and items; returns how many rows were mended."""
    rows = 0
    for column, owner in (("query_id", sources["queries"]), ("item_id", sources["items"])):
        if column in values and kinds[column] == "text":
            owner_value, _ = identifier(owner, column, kinds[column], data.zero_id)
            found = _match(con, table, column, source, values[column], owner, owner_value)
            mended[f"{source.name} whose {column} differs from that of {owner.name} in case or blanks"] = found
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


def _match(con: Connection, table: str, column: str, source: Source, value: str, owner: Source, owner_value: str) -> int:
    """Gives rows whose id of text is nobody's the id that differs from it in case and blanks alone, where there is just one.

    Args:
        con: with the table, and that of the owner.
        table: whose `column` is mended.
        column: our name of the id, in both.
        source: where the table's rows come from.
        value: SQL of the id over the source's columns.
        owner: the source that lists all ids.
        owner_value: SQL of the id over its columns.

    Returns:
        How many rows were mended.
    """
    unknown = f"SELECT {column} FROM {table} ANTI JOIN {owner.name} USING ({column})"
    if not one_row(con, f"SELECT count(*) FROM ({unknown})")[0]:
        return 0
    theirs = f"SELECT DISTINCT {value} AS unknown, {normalised_sql(source.sql(column))} AS text FROM {source.scan()}"
    ours = f"SELECT DISTINCT {owner_value} AS known, {normalised_sql(owner.sql(column))} AS text FROM {owner.scan()}"
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE spelling AS SELECT unknown, any_value(known) AS known
        FROM ({theirs}) t SEMI JOIN ({unknown}) u ON u.{column} = t.unknown JOIN ({ours}) o USING (text)
        GROUP BY unknown HAVING count(*) = 1"""
    )
    (mended,) = one_row(con, f"SELECT count(*) FROM {table} SEMI JOIN spelling ON unknown = {column}")
    con.execute(f"UPDATE {table} SET {column} = known FROM spelling WHERE {column} = unknown")
    con.execute("DROP TABLE spelling")
    return int(mended)
