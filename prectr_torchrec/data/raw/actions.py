"""The table of actions: what users did with what they were shown, one row each, as the source of labels."""

from __future__ import annotations

from collections.abc import Sequence

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.raw.labels import LabelSource, label_sources
from prectr_torchrec.data.raw.source import Connection, RawLogError, Source, Table, one_row, text_literal
from prectr_torchrec.system.errors import nearest

COLUMNS = ("request_id", "item_id", "action", "timestamp")
_MAX_NAMES = 10


def may_be_actions(data: DataConfig) -> list[str]:
    """Columns of impressions that may be missing there, since actions tell of them."""
    if data.raw.actions is None:
        return []
    return [label.name for label in label_sources(data) if label.time is None]


def labels_of_actions(data: DataConfig, impressions: Source) -> list[LabelSource]:
    """The labels that actions tell of: those that impressions have no column of.

    Raises:
        RawLogError: some files of the impressions have it and others do not.
    """
    names = may_be_actions(data)
    for name in names:
        without = [part for part in impressions.parts if name in impressions and impressions.place(part, name) is None]
        if without:
            raise RawLogError(
                f"{without[0].files[0]}: column {impressions.columns[name]!r} is missing, which other files of impressions have; "
                "write it into all of them, or into none for the actions to tell"
            )
    found = [label for label in label_sources(data) if label.name in names and label.name not in impressions]
    return [label._replace(time=f"acted_{label.column}") for label in found]


def load_actions(con: Connection, table: Table, data: DataConfig, labels: Sequence[LabelSource], drops: dict[str, int]) -> None:
    """Makes table actions(request_id, item_id, label, timestamp) of those that are labels; others are left out and counted.

    Raises:
        RawLogError: no action is called as a label is, though others are there; names them.
    """
    called = {label.name: data.action_of(label.name) for label in labels}
    counted = con.execute(f"SELECT action, count(*) FROM ({table.select()}) GROUP BY 1 ORDER BY 2 DESC, 1").fetchall()
    others = {name: count for name, count in counted if name not in called.values()}
    shown = ", ".join(f"{name!r} ({count:,})" for name, count in [*others.items()][:_MAX_NAMES])
    there = [name for name, _ in counted]
    for name, action in called.items():
        if others and action not in there:
            raise RawLogError(
                f"{table.source.label}: no action is called {action!r}, which labels.{name} is to be{nearest(action, others)}; "
                f"there are {shown}. Say what the log calls it: data.labels.{name}.action"
            )
    names = " ".join(f"WHEN {text_literal(action)} THEN {text_literal(name)}" for name, action in called.items())
    label = f"CASE action {names} END" if called else "NULL::VARCHAR"
    con.execute(
        f"CREATE TABLE actions AS SELECT request_id, item_id, {label} AS label, timestamp FROM ({table.select()}) "
        "WHERE label IS NOT NULL"
    )
    drops[f"actions that are no label: {shown}"] = sum(others.values())
    (nowhere,) = one_row(con, "DELETE FROM actions WHERE request_id IS NULL OR item_id IS NULL")
    drops["actions without a request or item"] = nowhere


def link_actions(con: Connection, table: Table, labels: Sequence[LabelSource], drops: dict[str, int]) -> None:
    """Gives the impressions a column of each label, and of when it first happened.

    Raises:
        RawLogError: an action before its impression, or most are of impressions that are not there; names file and row.
    """
    rows = one_row(con, "SELECT count(*) FROM actions")[0]
    (unknown,) = one_row(con, "SELECT count(*) FROM actions ANTI JOIN impressions USING (request_id, item_id)")
    if unknown * 2 > rows:
        raise RawLogError(
            f"{table.source.label}: {unknown} of {rows} actions are of a request_id and item_id that are not in impressions; are "
            "these the files of one log? Up to half would be dropped and counted"
        )
    con.execute("CREATE OR REPLACE TABLE actions AS FROM actions SEMI JOIN impressions USING (request_id, item_id)")
    drops["actions of an unknown impression"] = unknown
    _refuse_early(con, table)
    first = ", ".join(f"min(timestamp) FILTER (WHERE label = {text_literal(label.name)}) AS {label.time}" for label in labels)
    happened = ", ".join(f"({label.time} IS NOT NULL)::TINYINT AS {label.column}" for label in labels)
    con.execute(
        f"""CREATE TABLE acted AS SELECT i.*, a.* EXCLUDE (request_id, item_id), {happened} FROM impressions i
        LEFT JOIN (SELECT request_id, item_id, {first} FROM actions GROUP BY ALL) a USING (request_id, item_id)"""
    )
    con.execute("DROP TABLE impressions")
    con.execute("ALTER TABLE acted RENAME TO impressions")


def _refuse_early(con: Connection, table: Table) -> None:
    early = "FROM actions a JOIN impressions i USING (request_id, item_id) WHERE a.timestamp < i.timestamp"
    (count,) = one_row(con, f"SELECT count(*) {early}")
    if not count:
        return
    request, item, time, shown = one_row(
        con, f"SELECT request_id, item_id, a.timestamp, i.timestamp {early} ORDER BY ALL LIMIT 1"
    )
    condition = f"request_id = {request} AND item_id = {item} AND timestamp = {time}"
    ((file, row, (action, given)),) = table.find(con, ["action", "timestamp"], condition, 1)
    more = f" ({count - 1} more such rows)" if count > 1 else ""
    raise RawLogError(
        f"{file}: column {table.source.columns['timestamp']!r}, row {row}: {action!r} at {given}, and its impression is at "
        f"{shown}; expected a time from that one on{more}"
    )
