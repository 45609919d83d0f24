"""Names that the attributes of a log cannot have, since columns of the samples are called so."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from prectr_torchrec.config.columns import ColumnsConfig, Declared, LabelColumn, Place, TextColumn, VectorColumn
from prectr_torchrec.system.errors import nearest

OF_ITEMS = frozenset(
    "item_id query_id title title_tokens position click relevance level predicted age in_group shown clicked examined".split()
) | {"item"}
"""What `candidate_`, `history_` and `peer_` stand before besides attributes; `item` is what `_trained` stands behind."""
TRAINED = "_trained"
"""What counts of the train part end in."""
OF_USERS = frozenset("id events query_events shown clicked examined trained".split())
"""What `user_` stands before."""
_QUERIES = ("query_id", "query")
_OF_CANDIDATES = OF_ITEMS | {"weight", "request", "click_weight", "sample_weight", "title_index"}
_OF_TEXTS = frozenset({"query", "history_title"})
"""Texts that rankers read anyway."""
_OF_REQUESTS = frozenset("request_id request_weight timestamp item_id position click query num_candidates".split())
_OWNED = ("user_", "query_", "group_", "history_", "peer_", "candidate_")
"""What names of columns that are not of a request by itself begin with."""
_TAKEN: dict[Place, frozenset[str]] = {
    "users": OF_USERS,
    "queries": frozenset("id query events shown clicked examined trained index".split()),
    "requests": _OF_REQUESTS | {"candidates", "history", "peers"},
    "items": _OF_CANDIDATES,
    "impressions": _OF_CANDIDATES | {"request_id", "timestamp", "user_id"},
}
"""What a declared column cannot be called."""
_OF_IMPRESSIONS = frozenset("request_id timestamp user_id query_id item_id position click".split())
_COUNTERS = OF_ITEMS | OF_USERS | {"sums", "clicks"}
"""What the counters of a label cannot be called."""
_OF_PREDICTIONS = frozenset("score user_events query_events item_shown".split())
"""What a label cannot be called besides, since predictions have such columns."""
_PREFIXES: dict[Place, str] = {"users": "user_", "queries": "query_"}
"""What the samples call columns of there by, whether the log does or not."""
_TABLES: dict[Place, str] = {"requests": "impressions"}
"""Raw tables that are not called as the place."""


def _is_ours(name: str, taken: Collection[str]) -> bool:
    """Whether a name in lower case is one of those that samples have anyway, or ends as counts of the train part do."""
    return name in taken or name.endswith(TRAINED)


def check_attributes(items: Sequence[str], users: Sequence[str], query_group: str | None) -> None:
    """Raises ValueError where an attribute is called like another column of the samples, in upper or lower case."""
    for setting, table, names, taken in (
        ("item_attributes", "items", items, OF_ITEMS),
        ("user_attributes", "users", [name.removeprefix("user_") for name in users], OF_USERS),
    ):
        seen: set[str] = set()
        for name, written in zip(names, users if table == "users" else items, strict=True):
            if not name or re.search(r"[\x00-\x1f]", name):
                raise ValueError(f"{setting}: {written!r} is no name of a column")
            if _is_ours(name.lower(), taken):
                other = f"{table.removesuffix('s')}_{name}" if table == "items" else f"own_{name}"
                raise ValueError(
                    f"{setting}: {written!r} is the name of a column that the samples have anyway; give the attribute another "
                    f"name, such as {other!r}, and say what the file calls it: data.raw.{table}.columns: {{{other}: {written}}}"
                )
            if name.lower() in seen:
                raise ValueError(f"{setting}: {written!r} is there twice")
            seen.add(name.lower())
    if query_group in _QUERIES:
        raise ValueError(f"query_group: {query_group!r} is the query itself; name a column that several queries share, or null")


def free_name(place: Place, name: str, used: Collection[str] = ()) -> str:
    """A name that a declared column can have: the column's own, if possible.

    Args:
        place: where the column belongs.
        name: of the column in its file, any text.
        used: names of other declared columns, in lower case.

    Example::

        assert free_name("items", "price") == "price"
        assert free_name("items", "2nd colour") == "own_2nd_colour"
        assert free_name("items", "title") == "own_title"  # samples have the title anyway
    """
    free = re.sub(r"\W+", "_", name).strip("_") or "column"

    def is_taken(name: str) -> bool:
        low = name.lower().removeprefix(_PREFIXES.get(place, ""))
        owned = place == "requests" and (low.startswith(_OWNED) or low == "score")
        taken = _TAKEN[place] | _COUNTERS | {*used}
        return not re.fullmatch(r"[^\W\d]\w*", name) or _is_ours(low, taken) or owned

    while is_taken(free):
        free = f"own_{free}"
    return free


def check_columns(columns: ColumnsConfig, items: Sequence[str], users: Sequence[str], query_group: str | None) -> None:
    """Raises ValueError where a declared column is called like another one, in upper or lower case.

    Args:
        columns: the declared ones.
        items, users: attributes.
        query_group: the column of queries or the attribute that groups queries.
    """
    seen: dict[tuple[str, str], str] = {("items", name.lower()): "item_attributes" for name in items}
    seen |= {("users", name.removeprefix("user_").lower()): "user_attributes" for name in users}
    seen |= {("queries", query_group.lower()): "query_group"} if query_group else {}
    for place, name, settings in columns.declared():
        where, table = f"columns.{place}.{name}", _TABLES.get(place, place)
        low = name.lower().removeprefix(_PREFIXES.get(place, ""))
        advice = f"give it another name, and say what the file calls it: data.raw.{table}.columns: {{other_{name}: {name}}}"
        if not re.fullmatch(r"[^\W\d]\w*", name):
            raise ValueError(f"{where}: a name is made of letters, digits and _; {advice}")
        if isinstance(settings, VectorColumn) and settings.dtype == "float16" and place != "items":
            raise ValueError(f"{where}.vector.dtype: float16 is for vectors of items, which are kept apart; leave it out here")
        if isinstance(settings, VectorColumn) and settings.history and place != "items":
            raise ValueError(f"{where}.vector.history: past events have vectors of their items alone; leave it out here")
        if isinstance(settings, TextColumn) and place != "items":
            raise ValueError(f"{where}: a text is one of items, beside their title; declare it there, or as an id")
        taken = _TAKEN[place] | (_OF_TEXTS if isinstance(settings, TextColumn) else set())
        if _is_ours(low, taken) or (place == "requests" and low.startswith(_OWNED)):
            raise ValueError(
                f"{where}: this is the name of a column that the samples have anyway, or begins or ends as these do; {advice}"
            )
        # a request's columns and a candidate's stand in one raw table, those of items and impressions in one list
        for space in {"requests": ("impressions",), "impressions": ("impressions", "items")}.get(place, (place,)):
            if (space, low) in seen:
                raise ValueError(f"{where}: declared twice, also in {seen[space, low]}; {advice}")
            seen[space, low] = f"columns.{place}"


def check_labels(labels: Mapping[str, LabelColumn], columns: ColumnsConfig, items: Sequence[str], users: Sequence[str]) -> None:
    """Raises ValueError where a label is called like another column, or follows one that is not declared, or itself.

    Args:
        labels: by their names.
        columns: the declared ones.
        items, users: attributes.
    """
    declared = dict.fromkeys((name.lower() for name in items), "item_attributes")
    declared |= {name.lower(): f"columns.{place}" for place, name, _ in columns.declared() if place != "users"}
    if len(labels) > ("click" in labels) and "score" in columns.requests:
        raise ValueError("columns.requests.score: with labels, a request's score says what they are worth; give it another name")
    of_users = {name.removeprefix("user_").lower(): "user_attributes" for name in users}
    of_users |= {name.removeprefix("user_").lower(): "columns.users" for name in columns.users}
    for name, label in labels.items():
        time, known = label.time, ["click", *(other for other in labels if other != "click")]
        if time is not None and (time.lower() in declared or time.lower() in _OF_IMPRESSIONS or time in known):
            raise ValueError(f"labels.{name}.time: {time} is another column; name the one with the times at which it happened")
        if name == "click":
            if label.after != "click":
                raise ValueError(f"labels.click.after: {label.after}: nothing comes before a click; leave it out")
            continue
        low, counter = name.lower(), f"{name.lower()}s"
        taken = _is_ours(low, _TAKEN["impressions"] | _OF_PREDICTIONS) or counter in _COUNTERS
        if not re.fullmatch(r"[^\W\d]\w*", name) or taken:
            raise ValueError(f"labels.{name}: this is no name that a label can have; give it another one, such as cart")
        if low in declared:
            raise ValueError(f"labels.{name}: declared twice, also in {declared[low]}")
        if owner := (declared | of_users | dict.fromkeys(map(str.lower, labels), "labels")).get(counter):
            raise ValueError(f"labels.{name}: its counters are called {name}s, as a column of {owner} is; rename one of them")
        if label.after not in known:
            raise ValueError(f"labels.{name}: follows {label.after!r}, which is no label{nearest(label.after, known)}")
        _check_circle(name, labels)


def check_weight(weight: str | None, declared: Iterable[Declared]) -> None:
    """Raises ValueError where the column of weights is declared as something else too."""
    if weight is None:
        return
    others = {d.name.lower(): f"data.{_owner(d)}" for d in declared if d.place in ("requests", "impressions")}
    if owner := others.get(weight.lower()) or ("the log itself" if weight.lower() in _OF_IMPRESSIONS else None):
        raise ValueError(
            f"weight: {weight!r} is a column of {owner} too; give it another name, and say what the file calls it: "
            f"data.raw.impressions.columns: {{weight: {weight}}}"
        )


def check_valid_from(column: str | None, declared: Iterable[Declared]) -> None:
    """Raises ValueError where the column of the time from which a row of items holds is another one too."""
    others = {d.name.lower(): "an attribute, or one of data.columns.items" for d in declared if d.place == "items"}
    others |= {"item_id": "the item's id", "title": "its title"}
    if column is not None and (owner := others.get(column.lower())):
        raise ValueError(
            f"valid_from: {column!r} is {owner}; give it another name, and say what the file calls it: "
            f"data.raw.items.columns: {{row_from: {column}}}"
        )


def check_events(setting: str, events: str, labels: Sequence[str]) -> None:
    """Raises ValueError where the events of a sequence are none such, nor have a label."""
    known = ["shown", "clicked", *labels]
    if events not in known:
        raise ValueError(f"{setting}: {events!r} is none of {', '.join(known)}{nearest(events, known)}")


def check_kept(setting: str, names: Sequence[str] | None, ids: Sequence[str]) -> None:
    """Raises ValueError where a column that past events are to have is no id of items, or is there twice."""
    for place, name in enumerate(names or ()):
        if name not in ids:
            raise ValueError(f"{setting}: {name!r} is no id of item_attributes or columns.items{nearest(name, ids)}")
        if name in (names or ())[:place]:
            raise ValueError(f"{setting}: {name!r} is there twice")


def _owner(declared: Declared) -> str:
    return "labels" if isinstance(declared.settings, LabelColumn) else f"columns.{declared.place}"


def _check_circle(name: str, labels: Mapping[str, LabelColumn]) -> None:
    passed, after = [name], labels[name].after
    while after != "click" and after in labels:
        if after in passed:
            circle = " after ".join([*passed, after])
            raise ValueError(f"labels.{name}: {circle} is a circle; one of them has to come after click")
        passed.append(after)
        after = labels[after].after
