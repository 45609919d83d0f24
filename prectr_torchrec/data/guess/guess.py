"""`prectr init`: a configuration for somebody's own files, with what was guessed and why as its comments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prectr_torchrec.config.attributes import free_name
from prectr_torchrec.config.columns import PLACES, Declared, IdColumn, Place
from prectr_torchrec.config.files import load_config
from prectr_torchrec.data.guess.commented import commented_yaml, flow_yaml
from prectr_torchrec.data.guess.declarations import Declaration, declare, one_value_a_request, only_where_clicked
from prectr_torchrec.data.guess.folder import find_tables, values_of
from prectr_torchrec.data.guess.roles import Match, known_names, label_of, match_tables
from prectr_torchrec.data.raw.source import Connection, RawLogError, open_duckdb
from prectr_torchrec.runs.workspace import replace_text
from prectr_torchrec.system.paths import only_local

BASE = "demo"
ATTRIBUTES = ("category_id", "brand_id")
_WITHOUT = {
    "queries": "no file has ids of queries: texts that agree but for case and blanks are one query",
    "judgments": "no file has a query, an item and a grade: the ranker learns relevance from clicks alone",
    "users": "no file has columns of users",
    "actions": "no file has actions: clicks are a column of the impressions",
}
_TABLES = {
    "impressions": "what was shown",
    "items": "what can be shown",
    "queries": "texts of queries",
    "judgments": "grades of pairs",
    "users": "who searches",
    "actions": "what users did",
}
_TIMES = ("_time", "_at", "_timestamp")


@dataclass
class Guess:
    """A configuration that grows.

    Args:
        tree: its keys, as YAML has them.
        comments: path of keys -> what was guessed there, and why.
        left_out: columns that no line is about, and why.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    comments: dict[tuple[str, ...], str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def put(self, path: str, value: Any, why: str = "") -> None:
        """Sets `a.b.c`, and says why."""
        *above, last = keys = path.split(".")
        node = self.tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
        if why:
            self.comments[tuple(keys)] = why

    def _value(self, path: tuple[str, ...]) -> Any:
        node: Any = self.tree
        for key in path:
            node = node[key]
        return node

    def text(self, raw: Path) -> str:
        """The file."""
        head = [
            f"# A first configuration for the log in {raw}, written by `prectr init`: look through it, and change what is wrong."
        ]
        head += ["# `prectr config --config THIS` shows every setting that there is."]
        left = ["# Left out:", *(f"#   {line}" for line in self.left_out)] if self.left_out else []
        return "\n".join([*head, commented_yaml(self.tree, self.comments).rstrip(), *left]) + "\n"

    def report(self) -> list[str]:
        """What was guessed, a line each."""
        guessed = [f"{'.'.join(path)}: {flow_yaml(self._value(path))} ({why})" for path, why in self.comments.items()]
        return guessed + [f"left out: {line}" for line in self.left_out]


@only_local
def write_guess(raw: Path, out: Path, given: Mapping[str, str] | None = None) -> Guess:
    """Looks at the files of a log and writes a configuration that `prectr prepare` takes as it is.

    Args:
        raw: folder of the log.
        out: YAML file to write; must not be there.
        given: what is known already: table -> its path, or `table.column` -> the file's column.

    Returns:
        What was written, and what was guessed.

    Raises:
        RawLogError: a table or a column that every log has was not found, or is written in a way that cannot be read.
        FileExistsError: `out` is there.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already; move it, or write to another file: --out FILE")
    with open_duckdb() as con:
        guess = guess_config(con, raw, given or {})
    replace_text(out, guess.text(raw))
    load_config(out)
    return guess


def guess_config(con: Connection, raw: Path, given: Mapping[str, str]) -> Guess:
    """The guess alone, as of `write_guess`."""
    tables = find_tables(con, raw, [*known_names(), *given.values()])
    matches = match_tables(tables, given)
    guess = Guess()
    guess.put("base", BASE, "a small ranker; prectr_v2 is the one for millions of requests")
    labels = _labels(con, matches, guess)
    _put_tables(guess, matches, labels)
    _put_attributes(guess, matches)
    graded = "judgments" in matches and _put_levels(guess, matches["judgments"])
    _put_labels(guess, labels)
    used = {column for label in labels.values() for column in label.columns}
    declared = [found for place, match in _places(matches) for found in _declare(con, guess, place, match, matches, used)]
    _put_declared(guess, declared)
    _put_sizes(guess, matches)
    if not graded:
        guess.put("train.stages", [{"split": "train", "epochs": 2, "lr": 3.0e-3}], "one stage: there are no grades to begin with")
    matched = {match.table.path for match in matches.values()}
    guess.left_out += [f"{table.path}: it is none of the tables of a log" for table in tables if table.path not in matched]
    return guess


@dataclass(frozen=True)
class _Label:
    settings: dict[str, Any]
    why: str
    columns: tuple[str, ...] = ()
    """Of the impressions, that it takes."""


def _labels(con: Connection, matches: Mapping[str, Match], guess: Guess) -> dict[str, _Label]:
    """Clicks, carts and orders: columns of the impressions, or actions."""
    found = {**_acted_labels(con, matches, guess), **_column_labels(matches["impressions"])}
    if "click" not in matches["impressions"].columns and "click" not in found:
        table = matches["impressions"].table
        acted = "no file has actions" if "actions" not in matches else f"no action of {matches['actions'].table.path} is a click"
        raise RawLogError(
            f"{table.path}: no column looks like the click (0 or 1), and {acted}; its columns: {', '.join(table.columns)}. "
            "Say which column it is: --map impressions.click=COLUMN"
        )
    order = found.get("order")
    if order and "cart" in found:
        found["order"] = _Label({"after": "cart", **order.settings}, order.why, order.columns)
    return {name: found[name] for name in ("click", "cart", "order") if name in found}


def _column_labels(match: Match) -> dict[str, _Label]:
    """Labels that are columns of the impressions, with the time at which they happened where a column has it."""
    columns, found = match.table.columns, dict[str, _Label]()
    flags = {name: label for name, seen in columns.items() if seen.all("flags") and (label := label_of(name))}
    for name, label in flags.items():
        time = next((other for end in _TIMES if (other := name + end) in columns and columns[other].all("moments")), None)
        if label in found or (label == "click" and time is None):
            continue
        settings = {"time": time} if time else {}
        why = f"0 or 1 in {match.table.path}" + (f"; {time} says when it happened" if time else "")
        found[label] = _Label(settings, why, tuple(filter(None, [name, time])))
    return found


def _acted_labels(con: Connection, matches: Mapping[str, Match], guess: Guess) -> dict[str, _Label]:
    found: dict[str, _Label] = {}
    if (match := matches.get("actions")) is None:
        return found
    for action, count in values_of(con, match.table, match.columns["action"], 50):
        label = label_of(action)
        if label is None or label in found:
            guess.left_out.append(
                f"{match.table.path}: {count:,} actions {action!r}: they are no click, cart or order by their name"
            )
        else:
            found[label] = _Label({} if action == label else {"action": action}, f"{count:,} actions {action!r}")
    return found


def _put_tables(guess: Guess, matches: Mapping[str, Match], labels: Mapping[str, _Label]) -> None:
    for name in ("impressions", "items", "queries", "judgments", "users", "actions"):
        if name not in matches:
            if name != "actions" or "click" in matches["impressions"].columns:
                guess.put(f"data.raw.{name}", None, _WITHOUT[name])
            continue
        match, path = matches[name], f"data.raw.{name}"
        guess.put(f"{path}.path", match.table.path, f"{match.table.describe()}: {_TABLES[name]}")
        for key, value in match.table.dialect_settings.items():
            guess.put(f"{path}.{key}", value, "what stands between the cells")
        unread = ("query" if "queries" in matches else "query_id") if name in ("impressions", "judgments") else None
        if renamed := {ours: theirs for ours, theirs in match.columns.items() if ours not in (theirs, unread)}:
            guess.put(f"{path}.columns", renamed, "by their names")
    for name, label in labels.items():
        if label.columns and name not in matches["impressions"].table.columns and name != "click":
            guess.put(f"data.raw.impressions.columns.{name}", label.columns[0])
    if "position" not in matches["impressions"].columns:
        guess.left_out.append("impressions.position: no column looks like the rank at which an item was shown; it is optional")


def _put_attributes(guess: Guess, matches: Mapping[str, Match]) -> None:
    """Switches off what the base has of a category and a brand that the log does not have."""
    there = [name for name in ATTRIBUTES if name in matches["items"].columns]
    if len(there) == len(ATTRIBUTES):
        return
    missing = [name for name in ATTRIBUTES if name not in there]
    guess.put("data.item_attributes", there, f"no column of items looks like {' or '.join(missing)}")
    if "category_id" in missing:
        guess.put("data.query_group", None, "queries have no category to fall back on")
    for name in missing:
        guess.put(f"tables.{name.removesuffix('_id')}", None)
        for family in ("candidate", "history", "peer"):
            guess.put(f"features.{family}_{name}", None)


def _put_levels(guess: Guess, match: Match) -> bool:
    """Levels of the grades: one a grade where they are few whole numbers, else four of equal width. Whether there are any."""
    seen = match.table.columns[match.columns["relevance"]]
    low, high = seen.low or 0.0, seen.high or 0.0
    if seen.distinct <= 1 or low == high:
        guess.put("data.raw.judgments", None, f"all grades of {match.table.path} are {low:g}: they tell nothing apart")
        return False
    if seen.all("whole") and high - low <= 9:
        grades = [float(grade) for grade in range(int(low), int(high) + 1)]
        levels = {"boundaries": [grade + 0.5 for grade in grades[:-1]], "level_grades": grades}
        guess.put(
            "data.levels", {**levels, "grade_min": low, "grade_max": high}, f"grades are whole, {low:g} to {high:g}: a level each"
        )
    elif low < 1 or high > 3:
        boundaries = [round(low + (high - low) * part / 4, 6) for part in (1, 2, 3)]
        guess.put(
            "data.levels",
            {"boundaries": boundaries, "grade_min": low, "grade_max": high},
            f"grades lie from {low:g} to {high:g}: four levels of equal width",
        )
    return True


def _put_labels(guess: Guess, labels: Mapping[str, _Label]) -> None:
    for name, label in labels.items():
        if name != "click" or label.settings:
            guess.put(f"data.labels.{name}", label.settings, label.why)


def _places(matches: Mapping[str, Match]) -> Iterator[tuple[Place, Match]]:
    for place in PLACES:
        name = "impressions" if place == "requests" else place
        if name in matches:
            yield place, matches[name]


def _declare(
    con: Connection, guess: Guess, place: Place, match: Match, matches: Mapping[str, Match], used: set[str]
) -> Iterator[tuple[Declared, Declaration]]:
    """Declarations of one place; puts them into the guess."""
    taken = set[str]()
    for seen in match.table.columns.values():
        if seen.name in match.columns.values() or (place in ("requests", "impressions") and seen.name in used):
            continue
        if place in ("requests", "impressions"):
            if (place == "requests") != one_value_a_request(con, match.table, seen, match.columns["request_id"]):
                continue
            click = match.columns.get("click")
            if click and only_where_clicked(con, match.table, seen, click):
                guess.left_out.append(
                    f"{match.table.path}: {seen.name}: it has values only where there was a click, and would give it away"
                )
                continue
        found = declare(con, match.table, seen, place)
        if isinstance(found, str):
            guess.left_out.append(f"{match.table.path}: {seen.name}: {found}")
            continue
        name = free_name(place, seen.name, taken)
        taken.add(name.lower())
        if name != seen.name:
            raw = "impressions" if place == "requests" else place
            guess.put(f"data.raw.{raw}.columns.{name}", seen.name)
        guess.put(f"data.columns.{place}.{name}", found.written, found.why)
        yield Declared(place, name, IdColumn()), found


def _put_declared(guess: Guess, declared: list[tuple[Declared, Declaration]]) -> None:
    """Tables and features of the ids, and the parts that read numbers, vectors and texts."""
    for column, found in declared:
        if found.ids:
            guess.put(f"tables.{column.sample}", {"rows": _rows(found.ids), "dim": 16}, f"about {found.ids:,} ids")
            pooling = {"pooling": "mean"} if found.kind == "ids" else {}
            guess.put(f"features.{column.sample}", {"table": column.sample, **pooling})
    kinds = {found.kind for _, found in declared}
    if kinds & {"number", "time"}:
        guess.put("model.parts.numbers", {}, "reads the numbers and times")
    if "vector" in kinds:
        guess.put("model.parts.vectors", {"dim": 16}, "reads the vectors")
    if "text" in kinds:
        guess.put("model.parts.further_match", {}, "matches the texts with the query")


def _put_sizes(guess: Guess, matches: Mapping[str, Match]) -> None:
    """Larger tables than those of the base, where the log has more ids."""
    base = load_config(BASE).tables
    items, impressions = matches["items"], matches["impressions"]
    counts = {"item": items.table.rows, "user": _distinct(impressions, "user_id")}
    counts["query"] = matches["queries"].table.rows if "queries" in matches else _distinct(impressions, "query")
    counts |= {name.removesuffix("_id"): _distinct(items, name) for name in ATTRIBUTES if name in items.columns}
    for name, count in counts.items():
        if count > base[name].rows:
            guess.put(f"tables.{name}.rows", _rows(count), f"about {count:,} ids")


def _distinct(match: Match, column: str) -> int:
    seen = match.table.columns[match.columns[column]]
    return seen.distinct


def _rows(ids: int) -> int:
    """Rows that leave most ids one of their own: the power of two from twice as many on."""
    return max(64, 1 << (2 * ids - 1).bit_length())
