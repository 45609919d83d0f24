"""Queries that are new after training: what is measured on them may not have been taught.

A query is new if its text is searched in the log, but not in the train part. Texts that differ in case and spaces only are one
query, since that is all that a text encoder sees of it. A query that nobody searches is not new: no request measures it.
"""

from __future__ import annotations

from prectr_torchrec.data.hashing import normalised_sql
from prectr_torchrec.data.raw.source import Connection, one_row


def find_new_queries(con: Connection, train: str) -> dict[str, int]:
    """Makes temporary table new_queries(query).

    Args:
        con: with tables queries, events and judgments.
        train: what is true of the events of the train part, in SQL.

    Returns:
        `queries` that are new, and `judgments`, the graded pairs of these.
    """
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE new_queries AS
        WITH texts AS (SELECT rowid AS query, {normalised_sql("query")} AS text FROM queries),
        searched AS (SELECT query, bool_or({train}) AS in_train FROM events GROUP BY query),
        new_texts AS (SELECT text FROM searched JOIN texts USING (query) GROUP BY text HAVING NOT bool_or(in_train))
        SELECT query FROM texts SEMI JOIN new_texts USING (text)"""
    )
    queries, judgments = (
        one_row(con, f"SELECT count(*) FROM {rows}")[0]
        for rows in ("new_queries", "judgments SEMI JOIN new_queries USING (query)")
    )
    return {"queries": queries, "judgments": judgments}
