"""How a log writes its ids: what kind those of each column are, and what is odd about them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from prectr_torchrec.data.raw.readings import IdKind, Reading, element_type, is_plain_integer, is_text, is_unsigned, is_zero
from prectr_torchrec.data.raw.source import Connection, Source, Table

IdColumns = Mapping[str, Collection[str]]
"""Column of ids -> the raw tables where its name means these ids: an attribute may be called as another table's texts are."""


def id_kinds(
    con: Connection, sources: Sequence[Source], columns: IdColumns, separated: Collection[str] = ()
) -> dict[str, IdKind]:
    """How to read each id column: integers if every table has integers there, else hashed text in every table.

    CSV has no types: there a column is of integers if all its values are written as plain integers, but for `separated` ones,
    whose text is of several ids.
    """
    text, unsigned = set[str](), set[str]()
    for source in sources:
        there = _ids_of(source, columns)
        types = {column: {element_type(type_) or type_ for _, type_ in source.types(column)} for column in there}
        texts = [column for column, found in types.items() if any(map(is_text, found))]
        if source.parts[0].dialect is None:
            text |= {*texts}
        else:
            one = [column for column in texts if column not in separated]
            rows, plain = source.count(con, {column: lambda sql, type_: is_plain_integer(sql) for column in one})
            text |= {column for column, count in zip(one, plain, strict=True) if count < rows} | ({*texts} - {*one})
        wide = [c for c, found in types.items() if c not in text and any(not t.endswith("INT") or t == "UBIGINT" for t in found)]
        if wide:
            _, counts = source.count(con, dict.fromkeys(wide, is_unsigned))
            unsigned |= {column for column, count in zip(wide, counts, strict=True) if count}
    return {column: "text" if column in text else "unsigned" if column in unsigned else "integer" for column in columns}


def _ids_of(source: Source, columns: IdColumns) -> list[str]:
    return [column for column, tables in columns.items() if source.name in tables and column in source]


def mixed_ids(con: Connection, sources: Sequence[Source], columns: IdColumns, kinds: Mapping[str, IdKind]) -> dict[str, str]:
    """CSV columns of text of which most values are whole numbers: `table.column` -> the first row that is none, and how many.

    One mistyped id makes text of all.
    """
    odd = Reading("", lambda sql, type_: (f"NOT {is_plain_integer(sql)}", "false"), absent="false")
    found: dict[str, str] = {}
    for source in sources:
        texts = [column for column in _ids_of(source, columns) if kinds[column] == "text"]
        if source.parts[0].dialect is None or not texts:
            continue
        _, counts = source.count(con, {column: lambda sql, type_: f"NOT {is_plain_integer(sql)}" for column in texts})
        _, ids = source.count(con, {column: lambda sql, type_: f"{sql} IS NOT NULL" for column in texts})
        for column, count, there in zip(texts, counts, ids, strict=True):
            if 0 < 2 * count < there:
                ((file, row, (value,)),) = Table(source, {column: odd}, {column: "odd"}).find(con, [column], "odd", 1)
                found[f"{source.name}.{column}"] = f"{file.name}, row {row}: {value!r}" + f" ({count - 1} more)" * (count > 1)
    return found


def count_zeros(con: Connection, source: Source, columns: Sequence[str], kinds: Mapping[str, IdKind]) -> dict[str, int]:
    """Rows where an id is written as 0; those columns that have such, by `table.column`."""
    there = [column for column in columns if column in source]
    _, counts = source.count(con, {column: partial(is_zero, kind=kinds[column]) for column in there})
    return {f"{source.name}.{column}": count for column, count in zip(there, counts, strict=True) if count}
