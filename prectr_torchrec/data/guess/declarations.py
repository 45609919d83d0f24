"""What kind a log's own column is, by its type, its values and its name: a line of `data.columns`, or why there is none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from prectr_torchrec.config.columns import Place
from prectr_torchrec.data.guess.folder import MOST_ROWS, Found, Seen, separator_of
from prectr_torchrec.data.guess.roles import plain_name
from prectr_torchrec.data.raw.readings import EXACT, INTEGERS, as_text, is_number
from prectr_torchrec.data.raw.source import Connection, one_row

_OF_IDS = re.compile(r"(^|_)(id|ids|code|number|no|zip|postcode|ean|gtin|isbn|category|type|region|cluster)$")
_OF_TIMES = re.compile(r"(^|_)(at|time|timestamp|date|since|on)$")
_MOST_TEXT = 40
"""Characters of an id on average; what is longer is a text."""
_MOST_WIDTH = 4096


@dataclass(frozen=True)
class Declaration:
    """A column as `data.columns` has it.

    Args:
        kind: `number`, `time`, `vector`, `text`, `id` or `ids`.
        settings: of the kind; a number for the width of a vector.
        why: in a few words.
        ids: how many different ones there are, of `id` and `ids`.
    """

    kind: str
    settings: Any
    why: str
    ids: int = 0

    @property
    def written(self) -> Any:
        """As YAML has it: the kind alone where it has no settings."""
        return {self.kind: self.settings} if self.settings else self.kind


def declare(con: Connection, table: Found, seen: Seen, place: Place) -> Declaration | str:
    """A column's declaration, or why it is left out; `place`: whose it is."""
    if seen.filled == 0:
        return "it is empty"
    if seen.distinct <= 1 and seen.filled == seen.rows:
        return "it has one value throughout"
    if seen.element:
        return _of_lists(con, table, seen)
    if seen.written_time or (seen.epoch_seconds and _OF_TIMES.search(plain_name(seen.name))):
        return Declaration("time", {"transform": "log1p"}, "times; the ranker sees the days since then")
    if seen.all("numbers") and not (seen.all("whole") and _OF_IDS.search(plain_name(seen.name))):
        return _of_numbers(table, seen)
    if not (seen.text or is_number(seen.type)):
        return f"its type, {seen.type}, is no number, time, id or list"
    return _of_ids(con, table, seen, place)


def _of_numbers(table: Found, seen: Seen) -> Declaration:
    low, high, middle = seen.low or 0.0, seen.high or 0.0, abs(seen.middle or 0.0)
    if max(high, -low) < 10 * max(middle, 1e-30) or max(high, -low) <= 10:
        return Declaration("number", {}, f"numbers from {seen.low:g} to {seen.high:g}")
    if low >= 0 and table.whole:
        return Declaration("number", {"transform": "log1p"}, f"numbers from {seen.low:g} to {seen.high:g}, most of them small")
    return Declaration("number", {"transform": "signed_log"}, f"numbers from {seen.low:g} to {seen.high:g}, most of them small")


def _of_lists(con: Connection, table: Found, seen: Seen) -> Declaration | str:
    shortest, longest = seen.lengths or (0, 0)
    if seen.element in EXACT or seen.element.startswith("DECIMAL"):
        if shortest == longest and 1 < longest <= _MOST_WIDTH:
            return Declaration("vector", longest, f"every list has {longest} numbers")
        return f"lists of {shortest} to {longest} numbers: weights of ids can be declared by hand, `ids: {{weights: ...}}`"
    if seen.element not in (*INTEGERS, "VARCHAR", "UUID"):
        return f"lists of {seen.element} are neither ids nor numbers"
    if longest > 1000:
        return f"a list has {longest:,} ids, and 1,000 are the most"
    part = next(part for part in table.parts if table.source.place(part, seen.name))
    sql = (table.source.place(part, seen.name) or ("", ""))[0]
    ids = f"SELECT unnest({sql}) AS id FROM {part.scan()} LIMIT {MOST_ROWS}"
    count, nulls = one_row(con, f"SELECT count(DISTINCT id), count(*) - count(id) FROM ({ids})")
    return f"{nulls:,} of the ids in its lists are null" if nulls else Declaration("ids", {}, "lists of ids", count)


def _of_ids(con: Connection, table: Found, seen: Seen, place: Place) -> Declaration | str:
    if found := separator_of(con, table, seen):
        sign, count = found
        return Declaration("ids", {"separator": sign}, f"several ids a cell, with {sign!r} between them", count)
    if seen.text_length > _MOST_TEXT:
        return Declaration("text", {}, "a text beside the title") if place == "items" else "long texts are read of items alone"
    if 2 * seen.distinct > seen.filled and seen.distinct > 20:
        return "nearly every row has a value of its own, so that nothing can be learned of one"
    return Declaration("id", {}, "a few values that come again and again", seen.distinct)


def only_where_clicked(con: Connection, table: Found, seen: Seen, click: str) -> bool:
    """Whether a column of impressions has values where there was a click alone: it would tell the ranker the answer."""
    clicked = unclicked = 0
    for part in table.parts:
        value, flag = table.source.place(part, seen.name), table.source.place(part, click)
        if value is None or flag is None or seen.element:
            continue
        there = f"coalesce({as_text(*value)} NOT IN ('', '0', '0.0', 'false'), false)"
        yes = f"coalesce(TRY_CAST({flag[0]} AS INTEGER), 0) = 1"
        with_click, without = one_row(
            con, f"SELECT count(*) FILTER ({there} AND {yes}), count(*) FILTER ({there} AND NOT {yes}) FROM {part.scan()}"
        )
        clicked, unclicked = clicked + with_click, unclicked + without
    return clicked > 0 and unclicked == 0


def one_value_a_request(con: Connection, table: Found, seen: Seen, request: str) -> bool:
    """Whether all candidates of a request have the same value of a column."""
    for part in table.parts:
        value, key = table.source.place(part, seen.name), table.source.place(part, request)
        if value is not None and key is not None:
            text = f"coalesce({value[0]}::VARCHAR, '')"
            several = f"SELECT 1 FROM {part.scan()} GROUP BY {key[0]} HAVING min({text}) <> max({text}) LIMIT 1"
            if con.execute(several).fetchall():
                return False
    return True
