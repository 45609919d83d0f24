"""What a request may hold: plain Python or Arrow, checked, and brought into the columns that the samples have."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prectr_torchrec.config import DataConfig, nearest
from prectr_torchrec.data.columns import FAMILIES, family_of
from prectr_torchrec.data.hashing import hash_id
from prectr_torchrec.data.levels import pack_levels
from prectr_torchrec.data.schema import COUNTS, sample_schema

Request = Mapping[str, Any]
GROUPS = {"history": "history", "peer": "peers", "candidate": "candidates"}
"""Family of sample columns -> the list of a request that holds them."""
REQUIRED = ("query", "candidate_item_id")
_SKIPPED = ("num_candidates",)
_DOCS = {
    "request_id": "Comes back with the scores.",
    "user_id": "0: nobody known.",
    "query": "As the user typed it.",
    "user_events": "How often anything was shown to this user before.",
    "user_query_events": "How often anything was shown to this user under this query before.",
    "query_events": "How often anything was shown to others under this query before.",
    "history": "What this user was shown before, oldest first.",
    "peers": "What others were shown before under this query and, marked in_group and coming first, its group; oldest first.",
    "candidates": "What is to be ranked.",
    "relevance": "A grade, where one is known.",
    "predicted": "Probabilities of the levels where there is no grade.",
    "position": "From 1; 0: not logged.",
    "click": "1: clicked, 0: not.",
    "age": "Seconds before the request.",
    "title": "As shown.",
    "in_group": "1: under another query of the query's group.",
    "shown": "How often it was shown before, to anyone.",
    "clicked": "How often it was clicked before.",
    "examined": "How often it was shown before, each time weighted by the examination of its position.",
}


class RequestError(ValueError):
    """A request that cannot be scored: which field, what it holds, and what would be right.

    Attributes:
        field: path, such as `candidates[3].item_id`.
        got: what is there.
        expected: what should be.
    """

    def __init__(self, field: str, got: str, expected: str) -> None:
        super().__init__(f"{field}: got {got}; expected {expected}")
        self.field, self.got, self.expected = field, got, expected


class _Kind(NamedTuple):
    """What a value may be.

    Attributes:
        expected: in words.
        read: a plain value as it stands in the column; raises ValueError or TypeError.
        schema: JSON Schema.
        low, high: bounds, both ends included.
    """

    expected: str
    read: Callable[[Any], Any]
    schema: dict[str, Any]
    low: float | None = None
    high: float | None = None


class _Field(NamedTuple):
    column: str
    key: str
    type: pa.DataType
    """Of a value; of a list for per-level statistics."""
    kind: _Kind
    default: Any


class RequestSchema:
    """The fields of a request, made from the samples' schema.

    Args:
        data: of the run.
    """

    def __init__(self, data: DataConfig) -> None:
        self._levels = data.levels.count
        self._arrow = sample_schema(data)
        grades = (data.levels.grade_min, data.levels.grade_max)
        fields = [_field(field, self._levels, grades) for field in self._arrow if field.name not in _SKIPPED]
        self._request = [field for field in fields if family_of(field.column) is None]
        self._families = {f: [field for field in fields if family_of(field.column) == f] for f in FAMILIES}

    def describe(self) -> dict[str, Any]:
        """The JSON Schema of a request."""
        properties = {field.key: _describe(field) for field in self._request}
        for family, key in GROUPS.items():
            rows = {field.key: _describe(field) for field in self._families[family]}
            required = [field.key for field in self._families[family] if field.column in REQUIRED]
            shape = {"type": "object", "properties": rows, "required": required, "additionalProperties": False}
            listed = {key: {"type": "array", "items": row} for key, row in rows.items()}
            of_lists = {**shape, "properties": listed, "description": "The same as lists of equal length by field."}
            properties[key] = {"anyOf": [{"type": "array", "items": shape}, of_lists], "description": _DOCS[key]}
        required = [*(name for name in REQUIRED if family_of(name) is None), GROUPS["candidate"]]
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "SearchRequest", "type": "object",
            "properties": properties, "required": required, "additionalProperties": False,
        }  # fmt: skip

    def from_plain(self, requests: Sequence[Request], *, name: str | None = "requests") -> pa.Table:
        """Sample rows of plain requests.

        Args:
            requests: mappings as of `describe`.
            name: what the list is called in errors; None: there is one request, and fields are named from it.

        Raises:
            RequestError: a field is missing, unknown, or not what it should be.
        """
        paths = ["" if name is None else f"{name}[{i}]." for i in range(len(requests))]
        for request, path in zip(requests, paths, strict=True):
            if not isinstance(request, Mapping):
                raise RequestError(path.rstrip(".") or "request", _shown(request), "an object")
            _check_keys(request, [*(f.key for f in self._request), *GROUPS.values()], path)
        arrays: dict[str, pa.Array] = {}
        for field in self._request:
            values = [_value(request, field, path) for request, path in zip(requests, paths, strict=True)]
            places = [f"{path}{field.key}" for path in paths]
            arrays[field.column] = self._column(field, values, places.__getitem__)
        for family, key in GROUPS.items():
            arrays |= self._family(family, key, requests, paths)
        lengths = pa.compute.list_value_length(arrays["candidate_item_id"]).cast(pa.int32())
        arrays["num_candidates"] = lengths
        return pa.Table.from_arrays([arrays[name] for name in self._arrow.names], schema=self._arrow)

    def from_arrow(self, table: pa.Table) -> pa.Table:
        """Sample rows of a table with columns of the sample schema, of which all but the query and the ids may be missing.

        Raises:
            RequestError: a required column is missing, or one is not what it should be.
        """
        given = {family: next((n for n in table.column_names if family_of(n) == family), None) for family in FAMILIES}
        columns: dict[str, pa.Array] = {}
        for field in self._arrow:
            if field.name in table.column_names:
                columns[field.name] = _cast(table[field.name], field)
            elif field.name in REQUIRED:
                raise RequestError(field.name, "no such column", f"a column of {field.type}")
        for family in FAMILIES:
            example = columns.get(given[family] or "")
            for field in self._families[family]:
                if field.column not in columns:
                    columns[field.column] = _default_lists(field, example, table.num_rows)
        for field in self._request:
            if field.column not in columns:
                columns[field.column] = pa.array([field.default] * table.num_rows, self._arrow.field(field.column).type)
        columns["num_candidates"] = pa.compute.list_value_length(columns["candidate_item_id"]).cast(pa.int32())
        for field in (*self._request, *(f for fields in self._families.values() for f in fields)):
            self._check_column(field, columns[field.column])
        return pa.Table.from_arrays([columns[name] for name in self._arrow.names], schema=self._arrow)

    def _family(self, family: str, key: str, requests: Sequence[Request], paths: Sequence[str]) -> dict[str, pa.Array]:
        """The list columns of a family, of all requests."""
        fields = self._families[family]
        values: dict[str, list[Any]] = {field.key: [] for field in fields}
        offsets = [0]
        starts: list[tuple[str, bool]] = []
        for request, path in zip(requests, paths, strict=True):
            rows = request.get(key)
            if rows is None and family == "candidate":
                raise RequestError(f"{path}{key}", "nothing", "a list, which may be empty")
            where = f"{path}{key}"
            length = _add_columns(rows, fields, values, where) if isinstance(rows, Mapping) else _add_rows(
                [] if rows is None else rows, fields, values, where
            )  # fmt: skip
            starts.append((where, isinstance(rows, Mapping)))
            offsets.append(offsets[-1] + length)
        ends = np.array(offsets)

        def place(field: _Field) -> Callable[[int], str]:
            def name(i: int) -> str:
                row = int(np.searchsorted(ends, i, side="right")) - 1
                where, by_column = starts[row]
                return f"{where}.{field.key}[{i - ends[row]}]" if by_column else f"{where}[{i - ends[row]}].{field.key}"

            return name

        packed = pa.array(ends, pa.int32())
        return {f.column: pa.ListArray.from_arrays(packed, self._column(f, values[f.key], place(f))) for f in fields}

    def _column(self, field: _Field, values: list[Any], place: Callable[[int], str]) -> pa.Array:
        """Values as an array, each read and within its bounds; `place(i)` names the i-th in errors."""
        kind, types = field.kind, set(map(type, values))
        integers, floats = pa.types.is_integer(field.type), pa.types.is_floating(field.type)
        if types == {type(None)}:
            return pa.array([kind.read(None)] * len(values), field.type)
        try:
            if types <= {str} and pa.types.is_string(field.type):
                return pa.array(values, pa.string())
            if (integers and types <= {int}) or (floats and types <= {int, float}):  # nothing to convert
                numbers = np.array(values, dtype=np.int64 if integers else np.float64)
                if not _outside(numbers, kind).any():
                    return pa.array(numbers).cast(field.type)
        except (OverflowError, UnicodeEncodeError):
            pass  # one by one it shows which value it was
        return pa.array([_read(value, kind, place, i) for i, value in enumerate(values)], field.type)

    def _check_column(self, field: _Field, column: pa.Array) -> None:
        per_level = pa.types.is_list(field.type)
        if per_level:
            lengths = pa.compute.list_value_length(column).to_numpy(zero_copy_only=False)
            if (wrong := np.flatnonzero(lengths != self._levels + 1)).size:
                row = int(wrong[0])
                raise RequestError(f"row {row}: {field.column}", f"{lengths[row]} values", field.kind.expected)
        if not (pa.types.is_list(column.type) or pa.types.is_integer(column.type)):
            return
        flat = column.flatten() if pa.types.is_list(column.type) else column
        if pa.types.is_string(flat.type):
            return
        known = flat.is_valid().to_numpy(zero_copy_only=False)
        numbers = flat.fill_null(0).to_numpy(zero_copy_only=False)
        if (wrong := np.flatnonzero(_outside(numbers, field.kind) & known)).size:
            first, row, place = int(wrong[0]), int(wrong[0]), ""
            if pa.types.is_list(column.type):
                ends = np.cumsum(pa.compute.list_value_length(column).to_numpy(zero_copy_only=False))
                row = int(np.searchsorted(ends, first, side="right"))
                place = f"[{first - (ends[row - 1] if row else 0)}]"
            raise RequestError(f"row {row}: {field.column}{place}", _shown(flat[first].as_py()), field.kind.expected)


def _field(field: pa.Field, levels: int, grades: tuple[float, float]) -> _Field:
    name, family = field.name, family_of(field.name)
    key = name.removeprefix(f"{family}_") if family else name
    kind, default = _kind(name, key, field.type, levels, grades)
    return _Field(name, key, field.type.value_type if family else field.type, kind, default)


def _kind(name: str, key: str, type_: pa.DataType, levels: int, grades: tuple[float, float]) -> tuple[_Kind, Any]:
    value = type_.value_type if pa.types.is_list(type_) else type_
    if key == "predicted":
        schema = {"type": ["array", "null"], "items": {"type": "number", "minimum": 0}, "minItems": levels, "maxItems": levels}
        return _Kind(f"null or {levels} probabilities that add up to 1", lambda v: _distribution(v, levels), schema), None
    if key == "relevance":
        low, high = grades
        schema = {"type": ["number", "null"], "minimum": low, "maximum": high}
        return _Kind(f"null or a grade from {low:g} to {high:g}", _grade, schema, low, high), None
    if key in ("click", "in_group"):
        optional = family_of(name) == "candidate"
        schema = {"type": ["integer", "boolean", *["null"] * optional], "minimum": 0, "maximum": 1}
        return _Kind("0 or 1", _flag, schema, 0, 1), None if optional else 0
    if family_of(name) is None and pa.types.is_list(type_):
        schema = {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": levels + 1, "maxItems": levels + 1}
        expected = f"{levels + 1} numbers of at least 0: without a grade, then by level"
        return _Kind(expected, lambda v: _counts(v, levels + 1), schema, 0, np.finfo(np.float32).max), [0.0] * (levels + 1)
    if pa.types.is_string(value):
        return _Kind("a text", _text, {"type": "string"}), ""
    if pa.types.is_floating(value):
        schema = {"type": "number", "minimum": 0}
        return _Kind("a number of at least 0", _number, schema, 0, np.finfo(np.float32).max), 0.0
    counts = {"position": (0, 2**15 - 1), "age": (1, 2**62), "timestamp": (-(2**63), 2**63 - 1)}
    if key in counts or key.endswith("_events"):
        low, high = counts.get(key, (0, 2**31 - 1))
        schema = {"type": "integer", "minimum": low, "maximum": high}
        return _Kind(f"an integer from {low} to {high}", _integer, schema, low, high), max(low, 0)
    schema = {"type": ["integer", "string"], "minimum": -(2**63), "maximum": 2**63 - 1}
    return _Kind("a 64-bit integer or a text, as in the log", _id, schema, -(2**63), 2**63 - 1), 0


def _read(value: Any, kind: _Kind, place: Callable[[int], str], i: int) -> Any:
    try:
        found = kind.read(value)
    except (ValueError, TypeError, OverflowError):
        raise RequestError(place(i), _shown(value), kind.expected) from None
    if isinstance(found, int | float) and kind.low is not None and kind.high is not None and not kind.low <= found <= kind.high:
        raise RequestError(place(i), _shown(value), kind.expected)
    return found


def _value(request: Request, field: _Field, path: str) -> Any:
    value = request.get(field.key)
    if value is None and field.column in REQUIRED:
        raise RequestError(f"{path}{field.key}", "nothing", field.kind.expected)
    return field.default if value is None else value


def _add_rows(rows: Any, fields: list[_Field], values: dict[str, list[Any]], where: str) -> int:
    """Adds the values of a list of objects; returns its length."""
    if isinstance(rows, str) or not isinstance(rows, Sequence):
        raise RequestError(where, _shown(rows), "a list of objects, or an object of lists")
    keys = {field.key for field in fields}
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise RequestError(f"{where}[{i}]", _shown(row), "an object")
        if not row.keys() <= keys:
            _check_keys(row, keys, f"{where}[{i}].")
    for field in fields:
        found = [row.get(field.key) for row in rows]
        if None in found:
            _fill(found, field, lambda i, key=field.key: f"{where}[{i}].{key}")  # type: ignore[misc]
        values[field.key] += found
    return len(rows)


def _add_columns(rows: Mapping[str, Any], fields: list[_Field], values: dict[str, list[Any]], where: str) -> int:
    """Adds the values of an object of lists of equal length; returns that."""
    _check_keys(rows, [field.key for field in fields], f"{where}.")
    lists: dict[str, list[Any]] = {}
    for key, column in rows.items():
        if isinstance(column, np.ndarray):
            column = column.tolist()
        if isinstance(column, str) or not isinstance(column, Sequence):
            raise RequestError(f"{where}.{key}", _shown(column), "a list")
        lists[key] = list(column)
    lengths = {key: len(column) for key, column in lists.items()}
    if len(set(lengths.values())) > 1:
        raise RequestError(where, f"lists of {', '.join(f'{n} {key}' for key, n in lengths.items())}", "lists of equal length")
    length = next(iter(lengths.values()), 0)
    for field in fields:
        found = lists.get(field.key, [None] * length)
        if None in found:
            _fill(found, field, lambda i, key=field.key: f"{where}.{key}[{i}]")  # type: ignore[misc]
        values[field.key] += found
    return length


def _fill(values: list[Any], field: _Field, place: Callable[[int], str]) -> None:
    for i, value in enumerate(values):
        if value is None:
            if field.column in REQUIRED:
                raise RequestError(place(i), "nothing", field.kind.expected)
            values[i] = field.default


def _check_keys(given: Mapping[str, Any], valid: Any, path: str) -> None:
    for key in given:
        if key not in valid:
            raise RequestError(f"{path}{key}", "an unknown field", f"one of the schema{nearest(str(key), valid)}")


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    try:
        array = array.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RequestError(field.name, f"a column of {array.type} ({error})", f"a column of {field.type}") from None
    if array.null_count:
        raise RequestError(field.name, f"{array.null_count} nulls", f"{field.type} in every row")
    return array


def _default_lists(field: _Field, example: pa.Array | None, rows: int) -> pa.Array:
    lengths = np.zeros(rows, np.int32) if example is None else pa.compute.list_value_length(example).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    default = 0 if field.key == "predicted" else field.default
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array([default] * int(offsets[-1]), field.type))


def _outside(numbers: NDArray[Any], kind: _Kind) -> NDArray[np.bool_]:
    if kind.low is None or kind.high is None:
        return np.zeros(len(numbers), bool)
    return ~((numbers >= kind.low) & (numbers <= kind.high))  # of NaN both are false


def _id(value: Any) -> int:
    return hash_id(value) if isinstance(value, str) else _integer(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError
    return int(value)


def _flag(value: Any) -> int | None:
    return None if value is None else int(value) if isinstance(value, bool | np.bool_) else _integer(value)


def _number(value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError
    return float(value)


def _grade(value: Any) -> float | None:
    return None if value is None else _number(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # JSON can spell halves of characters, which no text has
    return value


def _counts(value: Any, length: int) -> list[float]:
    numbers = _numbers(value, length)
    if not np.isfinite(numbers).all():
        raise ValueError
    return numbers


def _distribution(value: Any, levels: int) -> int:
    if value is None:
        return 0
    numbers = np.array(_numbers(value, levels))
    if not abs(numbers.sum() - 1) < 0.01:
        raise ValueError
    return int(pack_levels(numbers))


def _numbers(value: Any, length: int) -> list[float]:
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) != length:
        raise TypeError
    numbers = [_number(number) for number in value]
    if not all(number >= 0 for number in numbers):
        raise ValueError
    return numbers


def _shown(value: Any) -> str:
    return f"{reprlib.repr(value)} ({type(value).__name__})"


def _describe(field: _Field) -> dict[str, Any]:
    name = field.key
    doc = _DOCS.get(name) or _counter_doc(name)
    described = {**field.kind.schema, **({"description": doc} if doc else {})}
    return described if field.column in REQUIRED else {**described, "default": field.default}


def _counter_doc(name: str) -> str | None:
    who, _, what = name.partition("_")
    whose = {"user": "to this user", "query": "to others under this query", "group": "to others under the query's group"}
    if what not in COUNTS or who not in whose:
        return None
    return f"By level, index 0 without a grade: times {what.replace('examined', 'shown, weighted by examination,')} {whose[who]}."
