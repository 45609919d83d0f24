"""What `prepare` made of a log, in figures that a person who knows the log can check."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from prectr_torchrec.config.columns import IdColumn
from prectr_torchrec.config.data import DataConfig, Levels
from prectr_torchrec.data.columns import declared_columns, declared_of
from prectr_torchrec.data.raw.search_results import raw_table
from prectr_torchrec.data.raw.source import Connection, Source, one_row

POSITIONS = 10
"""Told of one by one."""
_NONE = {
    "user_id": ": nobody known, without a past",
    "item_id": ": it shares the row of unknown items",
    "query_id": ": it shares the row of unknown queries",
}
"""Of columns that are no attributes."""
_KEPT = {
    "impressions": "events",
    "searches": "requests",
    "results": "events",
    "judgments": "judgments",
    "items": "items",
    "queries": "queries",
    "users": "users",
    "actions": "actions",
}


def summarise(con: Connection, data: DataConfig, sources: dict[str, Source], rows: dict[str, int]) -> dict[str, Any]:
    """The `summary` of the manifest.

    Args:
        con: with the tables of the log.
        data: the configuration.
        sources: the raw tables that are there.
        rows: of the files, by table.

    Returns:
        `tables` (rows in and out of each), `empty` (share of the rows of items, queries and users whose text or attribute is
        empty), and `positions` (impressions and clicks at the first positions; 0: not logged).
    """
    kept = _KEPT | ({"items": "item_versions"} if data.valid_from else {})
    tables = {name: {"in": rows[name], "out": _count(con, kept[name])} for name in sources}
    empty = {"items.title": _share(con, "items", "title = ''"), "queries.query": _share(con, "queries", "query = ''")}
    for column in declared_columns(data):
        source = column.source
        missing = f"{source.stored} IS NOT DISTINCT FROM {column.kind.missing}"
        empty[f"{raw_table(data, source)}.{source.column}"] = _share(con, source.table, missing)
    if data.query_group:
        empty["groups of queries"] = _share(con, "queries", "group_id = 0")
    at = f"SELECT position, count(*), sum(click) FROM events WHERE position <= {POSITIONS} GROUP BY 1 ORDER BY 1"
    positions = {str(position): [shown, int(clicks)] for position, shown, clicks in con.execute(at).fetchall()}
    return {"tables": tables, "empty": empty, "positions": positions}


def format_summary(manifest: dict[str, Any], data: DataConfig) -> list[str]:
    """Lines of text: the summary, what was dropped and mended, and notes of what may be a mistake."""
    summary = manifest["summary"]
    tables = [["table", "rows", "kept"], *([n, f"{t['in']:,}", f"{t['out']:,}"] for n, t in summary["tables"].items())]
    splits = [["split", "from", "to", "requests", "of known users", "candidates", "graded", "clicks", *data.further_labels]]
    splits += [[name, *_split_cells(split)] for name, split in manifest["splits"].items()]
    lines = [*_aligned(tables), "", *_aligned(splits), ""]
    if summary["positions"]:
        named = {"0": "not logged"}
        columns = [
            [named.get(p, p), f"{shown:,}", f"{clicks / shown:.3f}"] for p, (shown, clicks) in summary["positions"].items()
        ]
        lines += [*_aligned([list(row) for row in zip(["position", "shown", "CTR"], *columns, strict=True)]), ""]
    lines.append("empty: " + ", ".join(f"{name} {_percent(share)}" for name, share in summary["empty"].items()))
    lines += [f"dropped: {count:,} {what}" for what, count in manifest["dropped"].items() if count]
    if manifest.get("left_out", {}).get("requests"):
        left_out, share = manifest["left_out"], data.keep_unclicked
        what = f"{left_out['requests']:,} requests without a click or label ({left_out['candidates']:,} candidates)"
        lines.append(f"left out of train: {what}; the {_percent(share)} that are kept count for them (data.keep_unclicked)")
    lines += [f"mended: {count:,} {what}" for what, count in manifest["mended"].items()]
    return lines + _notes(manifest, data)


def far_from_levels(manifest: dict[str, Any], levels: Levels) -> str | None:
    """What to say where the judgments of a level lie elsewhere than the grade that stands for it, as whole grades do."""
    found = manifest["level_grades"]
    means = [stands if mean is None else mean for mean, stands in zip(found, levels.grades, strict=True)]
    quarter = (levels.grade_max - levels.grade_min) / levels.count / 4
    for level, (mean, stands) in enumerate(zip(means, levels.grades, strict=True), 1):
        if abs(mean - stands) > quarter:
            return (
                f"note: judgments of level {level} are {mean:.2f} on average, {stands:.2f} stands for it; with "
                f"data.levels.level_grades: {[round(m, 3) for m in means]} each level would stand for what it is (set it to "
                "train; the samples stay the same)"
            )
    return None


def _notes(manifest: dict[str, Any], data: DataConfig) -> list[str]:
    notes = []
    new = manifest.get("new_queries", {"queries": 0})
    if new["queries"]:
        what = f"{new['judgments']:,}, of {new['queries']:,} queries that only validation or test search"
        notes.append(f"left out of judgments: {what}")
    if not manifest["rows"]["judgments"]:
        notes.append("no judgments file: every relevance is missing")
    attributes = {f"{raw_table(data, column.source)}.{column.source.column}" for column, _ in declared_of(data, IdColumn)}
    for column, count in manifest["zeros"].items():
        none = "" if column in attributes else _NONE.get(column.partition(".")[2], "")
        notes.append(f"note: {count:,} rows of {column} are 0, which stands for none{none}; if 0 is an id, set data.zero_id: id")
    if manifest["positions_from"] == 0 and data.positions_from is None:
        notes.append("note: positions count from 0 and were raised by one; data.positions_from: 1 takes 0 as not logged")
    notes += [
        f"note: {column} is read as text, though most values are whole numbers ({value}); if that is a mistake, mend it"
        for column, value in manifest["mixed_ids"].items()
    ]
    far = far_from_levels(manifest, data.levels)
    return notes + ([far] if far else [])


def _split_cells(split: dict[str, Any]) -> list[str]:
    dated = split["time"] and split["time"][1] > 0  # pairs without a request have no time
    period = [_moment(time) for time in split["time"]] if dated else ["-", "-"]
    return [
        *period,
        f"{split['requests']:,}",
        _percent(split["known_users"] / max(split["requests"], 1)),
        f"{split['candidates']:,}",
        _percent(split["graded"] / max(split["candidates"], 1)),
        f"{split['clicks']:,}",
        *(f"{count:,}" for count in split["labels"].values()),
    ]


def _moment(time: int) -> str:
    return datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%d %H:%M")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join([row[0].ljust(widths[0]), *right[1:]]) for row, right in zip(rows, cells, strict=True)]


def _count(con: Connection, table: str) -> int:
    return int(one_row(con, f"SELECT count(*) FROM {table}")[0])


def _share(con: Connection, table: str, condition: str) -> float:
    return float(one_row(con, f"SELECT coalesce(avg(({condition})::INTEGER), 0) FROM {table}")[0])
