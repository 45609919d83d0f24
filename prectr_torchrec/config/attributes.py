"""Names that the attributes of a log cannot have, since columns of the samples are called so."""

from __future__ import annotations

import re
from collections.abc import Sequence

OF_ITEMS = frozenset(
    "item_id query_id title title_tokens position click relevance predicted age in_group shown clicked examined".split()
) | {"item_trained"}
"""What `candidate_`, `history_` and `peer_` stand before besides attributes."""
OF_USERS = frozenset("id events query_events shown clicked examined trained".split())
"""What `user_` stands before."""
_QUERIES = ("query_id", "query")


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
            if name.lower() in taken:
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
