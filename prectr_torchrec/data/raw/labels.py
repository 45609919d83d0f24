"""What users did with what they were shown: clicks and further labels, and from when on each is known.

In the table of impressions a label becomes 0, 1 or -1 (not known), and `known_<its column>` has the seconds from which on that
it happened is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prectr_torchrec.config.columns import LabelColumn
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.columns import declared_of
from prectr_torchrec.data.raw.source import Connection, Problems, RawLogError, Table, one_row


class LabelSource(NamedTuple):
    """A label in the table of impressions.

    Attributes:
        name: under `data.labels`.
        column: what the table calls its values.
        time: what the table calls the times at which it happened; None: it has none.
        after: the name of what comes before it; None: nothing does.
    """

    name: str
    column: str
    time: str | None
    after: str | None

    @property
    def known(self) -> str:
        """What the table calls the moments from which on it is known."""
        return f"known_{self.column}"


def label_sources(data: DataConfig) -> list[LabelSource]:
    """The click, and the labels in the order in which they are declared."""
    times, click = time_columns(data), data.labels.get("click", LabelColumn())
    found = [LabelSource("click", "click", click.time and times[click.time], None)]
    for column, label in declared_of(data, LabelColumn):
        found.append(LabelSource(column.source.column, column.source.stored, label.time and times[label.time], label.after))
    return found


def time_columns(data: DataConfig) -> dict[str, str]:
    """Columns of impressions with the times of labels -> what tables call them."""
    named = dict.fromkeys(label.time for label in data.labels.values() if label.time is not None)
    return {column: f"time_{number}" for number, column in enumerate(named)}


def known_columns(data: DataConfig) -> list[str]:
    """What the events have beside the labels, where these are known late."""
    return [label.known for label in label_sources(data)] if data.late else []


def link_labels(con: Connection, table: Table, data: DataConfig, acted: Sequence[LabelSource], mended: dict[str, int]) -> None:
    """Checks the labels of table impressions, mends them and adds from when on they are known.

    What comes after implies what comes before: who ordered without a cart has put it into one, and has clicked. It is known
    from the earliest of these on.

    Args:
        con: connection with the table.
        table: what it was made from.
        data: the configuration.
        acted: the labels that actions tell of, instead of columns of the table's source.
        mended: filled with the number of rows.

    Raises:
        RawLogError: a time before the impression, or of what did not happen; names file and row.
    """
    of_actions = {label.name: label for label in acted}
    labels = [of_actions.get(label.name, label) for label in label_sources(data)]
    if not data.late and len(labels) == 1:
        return
    problems = Problems()
    for label in (label for label in labels if label.name not in of_actions):
        with problems.collecting():
            _check_times(con, table, label)
    problems.refuse()
    for label in labels:
        _count_mended(con, label, labels, mended)
    implied = {label.name: _implied(label, labels, data.feedback_delay) for label in labels}
    values = ", ".join(f"{implied[label.name][0]} AS {label.column}" for label in labels)
    known = "".join(f", {implied[label.name][1]} AS {label.known}" for label in labels) if data.late else ""
    con.execute(f"CREATE TABLE labelled AS SELECT * REPLACE ({values}){known} FROM impressions")
    con.execute("DROP TABLE impressions")
    con.execute("ALTER TABLE labelled RENAME TO impressions")


def events_in_windows(data: DataConfig, acted: Sequence[LabelSource], until: int | None = None) -> str:
    """SQL of the events with each label as it is when its window has passed: 1 only if it happened within, after what it follows.

    Args:
        data: the configuration.
        acted: the labels that actions tell of.
        until: when the windows have to be over; a label whose window is not is unknown, -1. None: whenever that is.
    """
    labels = {label.name: label for label in [*label_sources(data), *acted]}  # those of actions have times
    windows = {name: _window(data, label) for name, label in labels.items()}
    if not any(window is not None for window in windows.values()):
        return "events"
    values = []
    for name, label in labels.items():
        window = (data.feedback_delay if label.time is None else 0) if windows[name] is None else windows[name]
        open_ = "false" if until is None else f"timestamp + {window} >= {until}"
        missed = f"{label.column} = 1 AND NOT ({_in_window(label, labels, windows)})"
        values.append(f"(CASE WHEN {open_} THEN -1 WHEN {missed} THEN 0 ELSE {label.column} END)::TINYINT AS {label.column}")
    return f"(SELECT * REPLACE ({', '.join(values)}) FROM events)"


def _window(data: DataConfig, label: LabelSource) -> int | None:
    """Seconds; None: it has no time of its own, or no window."""
    given = data.labels.get(label.name, LabelColumn()).window
    return None if label.time is None else data.label_window if given is None else given


def _in_window(label: LabelSource, labels: dict[str, LabelSource], windows: dict[str, int | None]) -> str:
    """Whether a label and all that it comes after happened, each within its window."""
    window = windows[label.name]
    own = f"{label.column} = 1" + (f" AND {label.known} <= timestamp + {window}" if window is not None else "")
    return own if label.after is None else f"{own} AND {_in_window(labels[label.after], labels, windows)}"


def _implied(label: LabelSource, labels: list[LabelSource], delay: int) -> tuple[str, str]:
    """SQL of the label with what it is implied by, and of when that is known; null where it did not happen."""
    own = f"coalesce({label.time or 'NULL'}, timestamp + {delay})"
    followers = [_implied(other, labels, delay) for other in labels if other.after == label.name]
    happened = " OR ".join([f"{label.column} = 1", *(f"{value} = 1" for value, _ in followers)])
    known = ", ".join([f"CASE WHEN {label.column} = 1 THEN {own} END", *(moment for _, moment in followers)])
    return f"(CASE WHEN {happened} THEN 1 ELSE {label.column} END)::TINYINT", f"least({known})"


def _check_times(con: Connection, table: Table, label: LabelSource) -> None:
    if label.time is None:
        return
    early = f"{label.time} < timestamp"
    idle = f"{label.time} IS NOT NULL AND {label.column} <> 1"
    counts = one_row(con, f"SELECT count(*) FILTER (WHERE {early}), count(*) FILTER (WHERE {idle}) FROM impressions")
    column = next(column for column, name in table.names.items() if name == label.time)
    for count, condition, other, wrong in (
        (counts[0], early, "timestamp", "it cannot have happened before it was shown"),
        (counts[1], idle, label.name, "what did not happen has no time"),
    ):
        if count:
            ((file, row, (time, beside)),) = table.find(con, [column, other], condition, 1)
            more = f" ({count - 1} more such rows)" if count > 1 else ""
            raise RawLogError(
                f"{file}: column {table.source.columns[column]!r}, row {row}: {time}, and {table.source.columns[other]} is "
                f"{beside}; {wrong}: expected the time of {label.name}, or null{more}"
            )


def _count_mended(con: Connection, label: LabelSource, labels: list[LabelSource], mended: dict[str, int]) -> None:
    before = next((other for other in labels if other.name == label.after), None)
    if before is not None:
        (count,) = one_row(con, f"SELECT count(*) FROM impressions WHERE {label.column} = 1 AND {before.column} <> 1")
        mended[f"impressions with {label.name} and without {before.name}, which it comes after: taken for both"] = count
    if label.time is not None:
        (count,) = one_row(con, f"SELECT count(*) FROM impressions WHERE {label.column} = 1 AND {label.time} IS NULL")
        mended[f"impressions with {label.name} and without its time: known data.feedback_delay after they were shown"] = count
