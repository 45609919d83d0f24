"""How lists are read from a raw column: those of Parquet, and text with a separator, as CSV has it."""

from __future__ import annotations

from collections.abc import Callable

from prectr_torchrec.config.data import ZeroId
from prectr_torchrec.data.hashing import hash_id_sql, joined_by, zero_sql
from prectr_torchrec.data.raw.readings import NULL, IdKind, Reading, as_text, element_type, is_number, is_text, read_id
from prectr_torchrec.data.raw.source import text_literal


def ids(kind: IdKind, zero: ZeroId, separator: str | None, most: int) -> Reading:
    """Lists of at most so many ids as BIGINT[]; null is the empty list."""

    def element(sql: str, type_: str) -> tuple[str, str] | None:
        if (found := read_id(sql, type_, kind)) is None:
            return None
        value, bad = found
        return zero_sql(value, zero), f"({value} IS NULL OR {bad})"

    what = "ids" if kind == "text" else "whole numbers of 64 bits"
    return _lists(f"at most {most:,} {what}, no null among them", element, separator, "BIGINT", most)


def paths(separator: str, zero: ZeroId, most: int) -> Reading:
    """Ids of the levels of a path as BIGINT[]: of `A`, `A > B` and `A > B > C`; null and empty text are the empty list."""

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        if type_ == NULL:
            return "[]::BIGINT[]", "false"
        if type_ not in ("VARCHAR", "BLOB"):
            return None
        text = as_text(sql, type_)
        levels = f"[trim(x) FOR x IN string_split({text}, {text_literal(separator)}) IF trim(x) <> '']"
        prefix = f"array_to_string(list_slice({levels}, 1, i), {text_literal(joined_by(separator))})"
        value = zero_sql(hash_id_sql(prefix), zero)
        wrong = f"({sql} IS NOT NULL AND coalesce(len({levels}) > {most}, true))"
        return f"coalesce([{value} FOR i IN range(1, len({levels}) + 1)], [])::BIGINT[]", wrong

    expected = f"text of at most {most:,} levels, {separator!r} between them; null or empty where there is none"
    return Reading(expected, read, absent="[]::BIGINT[]")


def weights(of: str, separator: str | None, largest: float) -> Reading:
    """Lists of numbers that are not negative as FLOAT[]; null is the empty list."""

    def element(sql: str, type_: str) -> tuple[str, str] | None:
        if not (is_number(type_) or is_text(type_)):
            return None
        value = f"TRY_CAST({sql} AS DOUBLE)"
        return f"CAST({value} AS FLOAT)", f"NOT coalesce({value} BETWEEN 0 AND {largest}, false)"

    return _lists(f"numbers that are not negative, as many as the row has ids in {of!r}", element, separator, "FLOAT")


def _lists(
    what: str, element: Callable[[str, str], tuple[str, str] | None], separator: str | None, made: str, most: int | None = None
) -> Reading:
    """Lists of what `element` reads: SQL and type of an element -> SQL of its value, and of whether it is bad."""

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        if type_ == NULL:
            return f"[]::{made}[]", "false"
        inner, given = element_type(type_), sql
        if separator is not None and type_ == "VARCHAR":
            split = f"string_split({sql}, {text_literal(separator)})"
            inner, given = "VARCHAR", f"[trim(x) FOR x IN {split} IF trim(x) <> '']"
        if not inner or (found := element("x", inner)) is None:
            return None
        value, bad = found
        values = f"coalesce([{value} FOR x IN {given} IF NOT ({bad})], [])::{made}[]"
        wrong = f"len({values}) <> coalesce(len({given}), 0)" + (f" OR len({values}) > {most}" if most else "")
        return values, f"({wrong})"

    expected = f"a list of {what}" if separator is None else f"a list, or text with {separator!r} between them, of {what}"
    types = f"{expected}; of text, `ids: {{separator: ...}}` says what stands between them" if separator is None else ""
    return Reading(expected, read, absent=f"[]::{made}[]", types=types)
