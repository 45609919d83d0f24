"""How the values of a raw column are read from each type that a file may have: SQL of the value, and of what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from prectr_torchrec.config.data import ZeroId
from prectr_torchrec.data.hashing import ZERO_ID, hash_id_sql, normalised_sql, zero_sql

IdKind = Literal["integer", "unsigned", "text", "normalised"]
"""`normalised`: of texts that are ids by themselves, whatever their case and blanks."""
"""How the ids of a column are read: as they are, in two's complement of 64 bits, or as the hash of their text (`hash_id`)."""

INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")
EXACT = {"HALF": 2**11, "FLOAT": 2**24, "DOUBLE": 2**53}
"""From here on, a float stands for several whole numbers. HALF is what DuckDB reads as FLOAT."""
TEXTS = ("VARCHAR", "BLOB", "UUID")
NULL = "NULL"
"""The type of a Parquet column that is null in every row, as pandas writes it."""
IDS = "ids: 64-bit whole numbers or text; cast the column to one of these"
_ID = "an id or null (of floats: a whole number below 2**53, from there on they lose digits)"
_WHOLE = "'[+-]?[0-9]+([.]0*)?'"


@dataclass(frozen=True)
class Reading:
    """How a column is read.

    Args:
        expected: what value is right, for messages.
        read: SQL name and DuckDB type of a column -> SQL of its value and of whether that is bad; None: not of this type.
        absent: SQL of the value where a file lacks the column.
        types: what types are right, for messages; "": as `expected`.
    """

    expected: str
    read: Callable[[str, str], tuple[str, str] | None]
    absent: str = "NULL"
    types: str = ""


def family(type_: str) -> str:
    """Types of one family go together in the files of a table; "" goes with all."""
    if type_ == NULL:
        return ""
    if element := element_type(type_):
        return f"lists of {family(element)}"
    return "text" if is_text(type_) else "number" if is_number(type_) or type_ == "BOOLEAN" else type_.split("(")[0]


def element_type(type_: str) -> str:
    """Of the elements of a type of lists; "" of what is none."""
    return type_.rpartition("[")[0].strip('"') if type_.endswith("]") else ""


def is_text(type_: str) -> bool:
    return type_ in TEXTS


def is_number(type_: str) -> bool:
    return type_ in INTEGERS or type_ in EXACT or type_.startswith("DECIMAL")


def whole_number(low: int, high: int, expected: str, *, nullable: bool = False) -> Reading:
    """Whole numbers in low..high as BIGINT, and null where that may be."""

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        if is_number(type_) or type_ == "BOOLEAN":
            value, whole = f"TRY_CAST({sql} AS BIGINT)", _is_whole(sql, type_)
        elif is_text(type_):
            value, whole = f"TRY_CAST({as_text(sql, type_)} AS BIGINT)", f"regexp_full_match({as_text(sql, type_)}, {_WHOLE})"
        elif type_ == NULL:
            value, whole = "NULL::BIGINT", "true"
        else:
            return None
        bad = f"NOT coalesce({whole} AND {value} BETWEEN {low} AND {high}, false)"
        return value, f"({sql} IS NOT NULL AND {bad})" if nullable else bad

    return Reading(expected, read)


def label(unknown: int) -> Reading:
    """0 or 1 as TINYINT, and `unknown` where that is null."""
    flag = whole_number(0, 1, "0, 1, or null where it is not known", nullable=True)

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        found = flag.read(sql, type_)
        return (f"coalesce({found[0]}, {unknown})::TINYINT", found[1]) if found else None

    return Reading(flag.expected, read, absent=f"{unknown}::TINYINT")


def seconds(low: int, high: int, *, nullable: bool = False, up: bool = False) -> Reading:
    """Moments as whole seconds, and null where that may be: numbers, timestamps, or text as of ISO 8601. Without a zone they are
    of UTC.

    A fraction of a second is dropped, so that of two moments none comes before the other that did not; with `up`, the next whole
    second stands for it: what begins then has begun by then.
    """

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        if type_ == NULL:
            value = "NULL::BIGINT"
        elif type_.startswith("TIMESTAMP") or type_ == "DATE":
            ticks, second = (f"epoch_ns({sql})", 10**9) if type_.endswith("_NS") else (f"epoch_us({sql})", 10**6)
            ticks = f"({ticks} + {(second - 1) * up})"
            value = f"(({ticks} - (({ticks} % {second}) + {second}) % {second}) // {second})"
        elif is_text(type_):
            value = _written_seconds(as_text(sql, type_), up)
        elif is_number(type_):
            value = f"TRY_CAST({'ceil' if up else 'floor'}({sql}) AS BIGINT)"
        else:
            return None
        bad = f"NOT coalesce({value} BETWEEN {low} AND {high}, false)"
        return value, f"({sql} IS NOT NULL AND {bad})" if nullable else bad

    null = ", or null" if nullable else ""
    written = "a timestamp, or text such as 2026-05-01T10:00:00+02:00"
    return Reading(f"seconds, not negative and no milliseconds{null} (or {written}; a fraction is dropped)", read)


_ISO = r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?"


def _written_seconds(text: str, up: bool) -> str:
    """SQL of the seconds that a text means, null where it means none."""
    plain, more = rf"regexp_replace({text}, '\.\d+', '')", ""
    if up:
        more = rf" + CASE WHEN regexp_matches({text}, '\.\d*[1-9]') THEN 1 ELSE 0 END"
    kinds = {
        r"'[+-]?\d+(\.\d*)?'": f"TRY_CAST({'ceil' if up else 'floor'}(TRY_CAST({text} AS DECIMAL(38, 18))) AS BIGINT)",
        f"'{_ISO}'": f"epoch_us(TRY_CAST({plain} AS TIMESTAMP)) // 1000000{more}",
        rf"'{_ISO}(Z|[+-]\d{{2}}(:?\d{{2}})?)'": f"epoch_us(TRY_CAST({plain} AS TIMESTAMPTZ)) // 1000000{more}",
    }
    return f"(CASE {' '.join(f'WHEN regexp_full_match({text}, {form}) THEN {value}' for form, value in kinds.items())} END)"


def moment() -> Reading:
    """Moments of any time as DOUBLE seconds, null where they are null."""
    whole = seconds(-(10**11), 10**11, nullable=True)

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        found = whole.read(sql, type_)
        return (f"({found[0]})::DOUBLE", found[1]) if found else None

    return Reading(whole.expected, read, absent="NULL::DOUBLE")


def number(low: float, high: float, expected: str, *, nullable: bool = True) -> Reading:
    """Numbers in low..high, or null where that may be, as DOUBLE."""

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        if type_ == NULL:
            return "NULL::DOUBLE", str(not nullable)
        if not (is_number(type_) or is_text(type_)):
            return None
        value = f"TRY_CAST({as_text(sql, type_) if is_text(type_) else sql} AS DOUBLE)"
        bad = f"({value} IS NULL OR isnan({value}) OR {value} NOT BETWEEN {low} AND {high})"
        return value, f"({sql} IS NOT NULL AND {bad})" if nullable else bad

    return Reading(expected, read)


def measure(low: float, high: float) -> Reading:
    """Numbers in low..high as FLOAT, null where they are null or NaN."""
    least = "" if low < 0 else f" from {low:g} on"
    expected = f"a number{least}, no infinity; null or NaN where missing"

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        if type_ == NULL:
            return "NULL::FLOAT", "false"
        if not (is_number(type_) or is_text(type_) or type_ == "BOOLEAN"):
            return None
        value = f"TRY_CAST({as_text(sql, type_) if is_text(type_) else sql} AS DOUBLE)"
        bad = f"({value} IS NULL OR NOT (isnan({value}) OR {value} BETWEEN {low} AND {high}))"
        return f"TRY_CAST(CASE WHEN isnan({value}) THEN NULL ELSE {value} END AS FLOAT)", f"({sql} IS NOT NULL AND {bad})"

    return Reading(expected, read, absent="NULL::FLOAT")


def vector(width: int, most: float) -> Reading:
    """Lists of `width` numbers in -most..most as FLOAT[width], null where they are null."""
    range_ = "" if most > 1e9 else f" in {-most:g}..{most:g}"
    expected = f"a list of {width} numbers{range_}, no null, NaN or infinity among them; null where it is missing"

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        element, none = element_type(type_), f"NULL::FLOAT[{width}]"
        if type_ == NULL:
            return none, "false"
        if not (is_number(element) or element in ("VARCHAR", NULL)):
            return None
        numbers = f"TRY_CAST({sql} AS DOUBLE[])"
        fit = f"len({numbers}) = {width} AND len([x FOR x IN {numbers} IF x BETWEEN {-most} AND {most}]) = {width}"
        return f"TRY_CAST({sql} AS FLOAT[{width}])", f"({sql} IS NOT NULL AND NOT coalesce({fit}, false))"

    return Reading(expected, read, absent=f"NULL::FLOAT[{width}]")


def text() -> Reading:
    """Texts, null as the empty one."""

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        if type_ == NULL:
            return "''", "false"
        return (f"coalesce({as_text(sql, type_)}, '')", _undecodable(sql, type_)) if type_ in ("VARCHAR", "BLOB") else None

    return Reading("text (of bytes: UTF-8)", read, absent="''")


def identifier(kind: IdKind, zero: ZeroId | None) -> Reading:
    """Ids as BIGINT, null where there is none; `zero` says what 0 is, of all ids but those of requests."""

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        if (found := read_id(sql, type_, kind)) is None:
            return None
        value, bad = found
        return zero_sql(value, zero) if zero else value, f"({sql} IS NOT NULL AND {bad})"

    return Reading(_ID, read, types=IDS)


def attribute(kind: IdKind, zero: ZeroId) -> Reading:
    """Ids where null is 0, "none"."""
    ids = identifier(kind, zero)

    def read(sql: str, type_: str) -> tuple[str, str] | None:
        found = ids.read(sql, type_)
        return (f"coalesce({found[0]}, 0)", found[1]) if found else None

    return Reading(_ID, read, absent="0::BIGINT", types=IDS)


def is_plain_integer(sql: str) -> str:
    """Whether a value of a text column is null or written as a plain integer, or a float of one, as nulls make of them."""
    number = f"TRY_CAST({sql} AS HUGEINT)"
    plain = f"CAST({number} AS VARCHAR) = regexp_replace({sql}, '[.]0+$', '') AND {number} BETWEEN {-(2**63)} AND {2**64 - 1}"
    return f"coalesce({sql} IS NULL OR ({plain}), false)"


def is_unsigned(sql: str, type_: str) -> str:
    """Whether an id takes the 64th bit, or may."""
    return "true" if type_ == "UBIGINT" else f"coalesce(TRY_CAST({sql} AS HUGEINT) >= {2**63}, false)"


def is_zero(sql: str, type_: str, kind: IdKind) -> str:
    """Whether an id is 0 or the text "0"."""
    found = read_id(sql, type_, kind)
    return f"{found[0]} IN (0, {ZERO_ID})" if found else "false"


def read_id(sql: str, type_: str, kind: IdKind) -> tuple[str, str] | None:
    """SQL of an id, null where that is or a text is empty, and of whether a value that is not null is bad."""
    if type_ == NULL:
        return "NULL::BIGINT", "false"
    if kind in ("text", "normalised") and is_text(type_):
        written = as_text(sql, type_)
        said = normalised_sql(written) if kind == "normalised" else written
        return hash_id_sql(f"nullif({said}, '')"), _undecodable(sql, type_)
    whole = f"TRY_CAST({sql} AS HUGEINT)"
    if is_text(type_):  # of CSV; what is written as a float has its digits
        bad = f"(NOT {is_plain_integer(sql)} OR (contains({sql}, '.') AND abs({whole}) >= {EXACT['DOUBLE']}))"
    elif is_number(type_):
        bad = f"NOT coalesce({_is_whole(sql, type_)}, false)"
        bad = f"({bad} OR abs({sql}) >= {EXACT[type_]})" if type_ in EXACT else bad
    else:
        return None
    if kind in ("text", "normalised"):
        return hash_id_sql(f"CAST({whole} AS VARCHAR)"), bad
    low, high = (0, 2**64 - 1) if kind == "unsigned" else (-(2**63), 2**63 - 1)
    bad = f"({bad} OR NOT coalesce({whole} BETWEEN {low} AND {high}, false))"
    # two's complement keeps all 64 bits
    value = f"CASE WHEN {whole} < {2**63} THEN {whole} ELSE {whole} - {2**64} END" if kind == "unsigned" else sql
    return f"TRY_CAST({value} AS BIGINT)", bad


def _is_whole(sql: str, type_: str) -> str:
    if type_ in EXACT:
        return f"(isfinite({sql}) AND {sql} = floor({sql}))"
    scale = re.search(r",\s*(\d+)", type_)
    return f"({sql} = floor({sql}))" if scale and int(scale[1]) else f"({sql} IS NOT NULL)"


def as_text(sql: str, type_: str) -> str:
    """What a column says in words; Parquet files of old writers have bytes for text."""
    return f"TRY(decode({sql}))" if type_ == "BLOB" else sql if type_ == "VARCHAR" else f"CAST({sql} AS VARCHAR)"


def _undecodable(sql: str, type_: str) -> str:
    return f"({sql} IS NOT NULL AND {as_text(sql, type_)} IS NULL)" if type_ == "BLOB" else "false"
