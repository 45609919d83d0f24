"""Which file is which table of a log, and which of its columns are the ones that every log has: by their names and values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prectr_torchrec.data.guess.folder import Found, Seen
from prectr_torchrec.data.raw.readings import seconds
from prectr_torchrec.data.raw.source import RawLogError

NAMES: dict[str, str] = {
    "request_id": "request_id request search_id search query_event_id serp_id list_id impression_id result_id",
    "timestamp": "timestamp time at ts datetime date event_time search_time searched_at shown_at created_at occurred_at",
    "user_id": "user_id user customer_id customer client_id visitor_id visitor member_id account_id shopper_id uid cookie_id",
    "query_id": "query_id qid term_id",
    "query": "query term search_term search_query query_text user_query search_text keywords keyword q",
    "item_id": "item_id item sku product_id product article_id article asin doc_id document_id listing_id object_id pid id",
    "position": "position rank pos place slot result_position",
    "click": "click clicked is_click is_clicked clicks",
    "title": "title name product_name product_title item_name item_title display_name headline",
    "relevance": "relevance grade relevance_grade judgment judgement rel rating label",
    "action": "action action_name action_type kind event event_type event_name type",
    "category_id": "category_id category cat_id cat department department_id product_type section genre",
    "brand_id": "brand_id brand maker manufacturer vendor seller author publisher",
}
"""Column that a log may have -> what files call it, the likeliest first."""
ACTIONS: dict[str, str] = {
    "click": "click clicked clicks select view_item product_click item_click",
    "cart": "cart add_to_cart added_to_cart addtocart cart_add basket add_to_basket",
    "order": "order purchase ordered purchased buy bought checkout conversion transaction sale",
}
"""Label -> what logs call it."""
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "impressions": (("request_id", "timestamp", "user_id", "item_id"), ("query_id", "query", "position", "click"), ()),
    "actions": (("request_id", "item_id", "action", "timestamp"), (), ()),
    "judgments": (("item_id", "relevance"), ("query_id", "query"), ("request_id",)),
    "items": (("item_id", "title"), ("category_id", "brand_id"), ("request_id", "query_id")),
    "queries": (("query_id", "query"), (), ("item_id", "request_id")),
    "users": (("user_id",), (), ("item_id", "request_id", "query_id")),
}
"""Table -> columns that it must have, may have, and does not have."""
_FILES = {
    "impressions": "impressions results searches search_log log views",
    "actions": "actions events clicks conversions interactions behavior behaviour",
    "judgments": "judgments judgements grades qrels ratings labels",
    "items": "items products catalog catalogue articles documents listings",
    "queries": "queries terms searches",
    "users": "users customers visitors members accounts",
}
_WANTED = {"impressions": "what was shown: a request, its time, user, query and item", "items": "an item and its title"}


@dataclass(frozen=True)
class Match:
    """A file as a table of the log: our column -> the file's column."""

    table: Found
    columns: dict[str, str]


def plain_name(name: str) -> str:
    """A name in lower case, words joined by `_`: `customerId` is `customer_id`."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"\W+|_+", "_", snake).strip("_").lower()


def known_names() -> list[str]:
    """All of them, for the delimiter of a CSV."""
    return sorted({name for names in NAMES.values() for name in names.split()})


def match_tables(tables: Iterable[Found], given: Mapping[str, str]) -> dict[str, Match]:
    """The tables of a log among the files of a folder.

    Args:
        tables: from `find_tables`.
        given: what is known: table -> path, or `table.column` -> the file's column.

    Raises:
        RawLogError: no file has the impressions or the items, a column is missing, or a time or click is written in a way that
            cannot be read; says what would be right.
    """
    left, matches = list(tables), dict[str, Match]()
    _check_given(left, given)
    for name in TABLES:
        candidates = [table for table in left if given.get(name) == table.path]
        if name not in given:
            taken = {path for other, path in given.items() if other in TABLES}
            free = [table for table in left if table.path not in taken]
            candidates = [table for table in free if not _missing(name, table, given) and not _has(table, TABLES[name][2])]
        if not candidates:
            continue
        best = max(candidates, key=lambda table: _fitness(name, table, given))
        if name in given and (missing := _missing(name, best, given)):
            raise RawLogError(_lacks(name, best, missing))
        matches[name] = Match(best, _columns(name, best, given))
        left.remove(best)
    for name in _WANTED:
        if name not in matches:
            raise RawLogError(_not_found(name, left, given))
    for name, match in matches.items():
        _check_values(name, match)
    return matches


def label_of(name: str) -> str | None:
    """The label that a column or action is, by its name."""
    plain = plain_name(name).removeprefix("is_").removeprefix("has_")
    return next((label for label, names in ACTIONS.items() if plain in names.split()), None)


def _columns(name: str, table: Found, given: Mapping[str, str]) -> dict[str, str]:
    """Our columns that a table would have as one of the log's, by names; a column is taken once."""
    required, optional, _ = TABLES[name]
    taken, found = set[str](), dict[str, str]()
    for role in (*required, *optional):
        theirs = given.get(f"{name}.{role}") or _by_name(role, table.columns, name, taken)
        if theirs is not None and theirs in table.columns:
            found[role] = theirs
            taken.add(theirs)
    return found


def _by_name(role: str, columns: Mapping[str, Seen], table: str, taken: set[str]) -> str | None:
    plain = {plain_name(name): name for name in reversed([*columns]) if name not in taken}
    for name in NAMES[role].split():
        if name == "id" and table != "items":
            continue
        if name in plain and _FITS.get(role, lambda _: True)(columns[plain[name]]):
            return plain[name]
    return None


def _missing(name: str, table: Found, given: Mapping[str, str]) -> list[str]:
    found, (required, _, _) = _columns(name, table, given), TABLES[name]
    missing = [role for role in required if role not in found]
    if name in ("impressions", "judgments") and not {"query", "query_id"} & found.keys():
        missing.append("query")
    if name == "users" and table.columns.keys() <= set(found.values()):
        missing.append("a column of users")
    return missing


def _has(table: Found, roles: Iterable[str]) -> bool:
    return any(_by_name(role, table.columns, "", set()) is not None for role in roles)


def _fitness(name: str, table: Found, given: Mapping[str, str]) -> int:
    """The more, the likelier: its columns, the name of its file, and that what was shown is no action."""
    by_file = any(word in plain_name(table.path) for word in _FILES[name].split())
    acted = name == "impressions" and _has(table, ["action"])
    return len(_columns(name, table, given)) + 2 * by_file - 3 * acted


_FITS: dict[str, Callable[[Seen], bool]] = {
    "title": lambda seen: seen.text,
    "query": lambda seen: seen.text,
    "action": lambda seen: seen.text,
    "relevance": lambda seen: seen.all("numbers"),
    "position": lambda seen: seen.all("whole") or not seen.filled,
}
"""Columns that are only what their names say if their values are so."""


def _check_given(tables: Iterable[Found], given: Mapping[str, str]) -> None:
    by_path = {table.path: table for table in tables}
    for key, value in given.items():
        name, _, role = key.partition(".")
        roles = [*TABLES[name][0], *TABLES[name][1]] if name in TABLES else []
        if name not in TABLES or (role and role not in roles):
            valid = ", ".join([*TABLES] if name not in TABLES else [f"{name}.{role}" for role in roles])
            raise RawLogError(f"--map {key}={value}: {key!r} is nothing that a log has (valid: {valid})")
        if not role and value not in by_path:
            raise RawLogError(f"--map {key}={value}: there is no such file or folder; there are {', '.join(by_path)}")
        if role and not any(value in table.columns for table in by_path.values()):
            raise RawLogError(f"--map {key}={value}: no file has a column {value!r}")


def _not_found(name: str, left: list[Found], given: Mapping[str, str]) -> str:
    """What is missing in the file that is nearest to it."""
    if not left:
        return f"no file has {name} ({_WANTED[name]}); write them into a file of their own"
    nearest = max(left, key=lambda table: (-len(_missing(name, table, given)), _fitness(name, table, given)))
    return _lacks(name, nearest, _missing(name, nearest, given))


def _lacks(name: str, table: Found, missing: list[str]) -> str:
    what = f" ({_WANTED[name]})" if name in _WANTED else ""
    maps = " ".join(f"--map {name}.{role}=COLUMN" for role in missing)
    return (
        f"no file has all of {name}{what}. Nearest is {table.path}, in which no column looks like {' or '.join(missing)}; "
        f"its columns: {', '.join(table.columns)}. Say which column it is: {maps}, or which file: --map {name}=FILE"
    )


def _check_values(name: str, match: Match) -> None:
    """Raises RawLogError where a time or click cannot be read as it is."""
    expected = {"timestamp": ("moments", seconds(0, 10**11).expected), "click": ("flags", "0 or 1")}
    for role, (kind, words) in expected.items():
        if role in match.columns:
            seen = match.table.columns[match.columns[role]]
            if not seen.all(kind) or seen.filled < seen.rows:
                example = f", such as {seen.low:.0f}" if seen.low is not None else ""
                raise RawLogError(
                    f"{match.table.path}: column {seen.name!r} looks like the {role} of {name}, and "
                    f"{seen.bad[kind] + seen.rows - seen.filled:,} of its {seen.rows:,} values are none{example}; "
                    f"expected {words}"
                )
