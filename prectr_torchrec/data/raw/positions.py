"""Positions of a log that counts them from 0."""

from __future__ import annotations

from prectr_torchrec.data.column_kinds import MAX_POSITION
from prectr_torchrec.data.raw.source import Connection, one_row


def raise_positions(con: Connection, given: int | None) -> int:
    """Brings `impressions.position`, null where not logged, to count from 1.

    Args:
        con: with table impressions(request_id, position, ...).
        given: what the log counts from; None: 0 where most requests have exactly one 0 and none has two, else 1.

    Returns:
        What the log counts from.
    """
    first = _find_first(con) if given is None else given
    if first == 0:
        con.execute(f"UPDATE impressions SET position = least(position + 1, {MAX_POSITION}) WHERE position IS NOT NULL")
    return first


def _find_first(con: Connection) -> int:
    of_request = (
        "SELECT count(*) FILTER (WHERE position = 0) AS zeros, max(position) AS last FROM impressions GROUP BY request_id"
    )
    with_zero, most, last, requests = one_row(
        con, f"SELECT count(*) FILTER (WHERE zeros = 1), max(zeros), max(last), count(*) FROM ({of_request})"
    )
    return 0 if most == 1 and (last or 0) > 0 and 2 * with_zero > requests else 1
