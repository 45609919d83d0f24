"""Items that change: several rows each, of which a moment sees the one that held then."""

from __future__ import annotations

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.raw.source import Connection, one_row

VALID_FROM = "valid_from"
"""What tables call the seconds from which a row of items holds."""
VERSION = "version"
"""What tables and column files call the number of such a row."""


def split_versions(con: Connection) -> None:
    """Makes table item_versions(version, <items>) of all rows of table items, sorted by item and time; `version` counts from 0.

    Items keep the latest row of each, and the numbers of the first and last one: `first_version`, `last_version`.
    """
    con.execute(
        f"""CREATE TABLE item_versions AS SELECT row_number() OVER (ORDER BY item_id, {VALID_FROM}) - 1 AS {VERSION}, *
        FROM items ORDER BY {VERSION}"""
    )
    con.execute(
        f"""CREATE OR REPLACE TABLE items AS SELECT * EXCLUDE ({VERSION}, {VALID_FROM}),
            min({VERSION}) OVER (PARTITION BY item_id) AS first_version, {VERSION} AS last_version
        FROM item_versions QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY {VERSION} DESC) = 1 ORDER BY item_id"""
    )


def version_at(data: DataConfig, time: str) -> tuple[str, str]:
    """SQL of the number of an item's row at a moment, a further column, and of the join that finds it.

    Before its first row, an item is as in that one. Both are empty where items have one row each.

    Args:
        data: the configuration.
        time: SQL of the moment, beside items as `i`.
    """
    if not data.valid_from:
        return "", ""
    join = f"ASOF LEFT JOIN item_versions v ON v.item_id = i.item_id AND {time} >= v.{VALID_FROM}"
    return f", coalesce(v.{VERSION}, i.first_version) AS {VERSION}", join


def count_early(con: Connection, data: DataConfig, mended: dict[str, int]) -> None:
    """Counts the events before the first row of their item."""
    if data.valid_from:
        early = f"SELECT count(*) FROM events e JOIN item_versions v USING ({VERSION}) WHERE e.timestamp < v.{VALID_FROM}"
        mended["impressions before the first row of their item, which was taken"] = int(one_row(con, early)[0])
