"""What a request may hold: plain Python or Arrow, checked, and brought into the columns that the samples have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.score import CLICK_ALONE, Worth, multiplied, numbers_of_candidates, read_score
from prectr_torchrec.data.column_kinds import Measure, Text
from prectr_torchrec.data.columns import LISTS, Family, family_of, sample_columns
from prectr_torchrec.data.list_kinds import Weights
from prectr_torchrec.data.schema import sample_schema
from prectr_torchrec.serving.arrow_columns import cast_column, check_column, defaults, place_in
from prectr_torchrec.serving.fields import DOCS, Field, Limits, describe, ids_of_queries, outside, read, short, shown
from prectr_torchrec.serving.fields import RequestError as RequestError
from prectr_torchrec.serving.lists import fit_weights
from prectr_torchrec.serving.worth import FIELD, check_numbers, check_worth, describe_worth
from prectr_torchrec.system.errors import nearest

Request = Mapping[str, Any]
GROUPS: dict[Family, str] = {"history": "history", "peer": "peers", "candidate": "candidates"}
"""Family of sample columns -> the list of a request that holds them."""


class RequestSchema:
    """The fields of a request, made from the samples' schema.

    Args:
        data: of the run.
        id_kinds: how the log writes its ids, as `prepared.json` tells; without it integers and texts pass alike. Where queries
            are their texts, a request without `query_id` has that of its query.
        labels: those that the ranker predicts; of several a request may say what each is worth.
        score: what they are worth otherwise.
    """

    def __init__(
        self,
        data: DataConfig,
        id_kinds: Mapping[str, str] | None = None,
        labels: Sequence[str] = (),
        score: Mapping[str, Worth] = CLICK_ALONE,
    ) -> None:
        self._arrow, self._labels = sample_schema(data, gathered=True), labels if len(labels) > 1 else ()
        self._score, self._numbers = score, numbers_of_candidates(data.declared())
        self._query_is_id = (id_kinds or {}).get("query_id") == "normalised"
        fields = [Field(column, column.kind.json()) for column in sample_columns(data, id_kinds)]
        self._fields = {field.name: field for field in fields if field.column.served}
        self._not_served = [field for field in fields if not field.column.served]
        self._request = [field for field in self._fields.values() if not field.column.listed]
        self._families = {family: [field for field in self._fields.values() if field.column.family == family] for family in LISTS}

    def describe(self) -> dict[str, Any]:
        """The JSON Schema of a request."""
        properties = {field.key: describe(field) for field in self._request}
        properties |= {FIELD: describe_worth(self._labels, self._numbers)} if self._labels else {}
        for family, key in GROUPS.items():
            rows = {field.key: describe(field) for field in self._families[family]}
            required = [field.key for field in self._families[family] if field.column.required]
            shape = {"type": "object", "properties": rows, "required": required, "additionalProperties": False}
            listed = {key: {"type": "array", "items": row} for key, row in rows.items()}
            of_lists = {**shape, "properties": listed, "description": "The same as lists of equal length by field."}
            nothing = [{"type": "null"}] if family != "candidate" else []
            properties[key] = {"anyOf": [{"type": "array", "items": shape}, of_lists, *nothing], "description": DOCS[key]}
        required = [*(field.key for field in self._request if field.column.required), GROUPS["candidate"]]
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "SearchRequest",
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    def most_values(self, limits: Limits) -> int:
        """Values that the JSON of a request within the limits can have."""
        most = {"request": 1, "candidate": limits.candidates, "history": limits.events, "peer": limits.events}
        fields = self._fields.values()
        return len(self._labels) + sum(most[f.column.family] * f.json.schema.get("maxItems", 1) for f in fields)

    def from_plain(self, requests: Sequence[Request], *, name: str | None = "requests", limits: Limits | None = None) -> pa.Table:
        """Sample rows of plain requests.

        Args:
            requests: mappings as of `describe`.
            name: what the list is called in errors; None: there is one request, and fields are named from it.
            limits: of each request; None: there are none.

        Raises:
            RequestError: a field is missing, unknown, beyond the limits, or not what it should be.
        """
        paths = ["" if name is None else f"{name}[{i}]." for i in range(len(requests))]
        for request, path in zip(requests, paths, strict=True):
            if not isinstance(request, Mapping):
                raise RequestError(path.rstrip(".") or "request", shown(request), "an object")
            keys = [*(f.key for f in self._request), *GROUPS.values(), *([FIELD] if self._labels else [])]
            _check_keys(request, keys, path)
            if self._labels:
                check_worth(request, self._labels, self._numbers, path)
            own = request.get(FIELD) if self._labels else None
            check_numbers(request.get(GROUPS["candidate"]), read_score(own) if own else self._score, path)
        arrays: dict[str, pa.Array] = {}
        for field in self._request:
            values = [_value(request, field, path) for request, path in zip(requests, paths, strict=True)]
            places = [f"{path}{field.key}" for path in paths]
            arrays[field.name] = self._column(field, values, places.__getitem__, limits)
        if self._query_is_id:
            without = [request.get("query_id") is None for request in requests]
            arrays["query_id"] = pc.if_else(pa.array(without), ids_of_queries(arrays["query"]), arrays["query_id"])
        fit_weights(arrays, self._request, lambda field, i: f"{paths[i]}{field.key}")
        for family, key in GROUPS.items():
            arrays |= self._family(family, key, requests, paths, limits)
        if limits is not None:
            _check_characters(arrays, limits.all_characters * len(requests))
        return self._table(arrays, len(requests))

    def from_arrow(self, table: pa.Table) -> pa.Table:
        """Sample rows of a table with columns of the sample schema, of which all but the query and the ids may be missing.

        Raises:
            RequestError: a required column is missing, one of a list's fields is unknown, or one is not what it should be.
        """
        for name in table.column_names:
            if family_of(name) and name not in self._arrow.names:
                raise RequestError(name, "an unknown column", f"one of the schema{nearest(name, self._arrow.names)}")
        if self._query_is_id and "query_id" not in table.column_names and "query" in table.column_names:
            table = table.append_column("query_id", ids_of_queries(table["query"]))
        given = {family: next((n for n in table.column_names if family_of(n) == family), None) for family in LISTS}
        columns: dict[str, pa.Array] = {}
        for name, field in self._fields.items():
            if name in table.column_names:
                columns[name] = cast_column(table[name], field)
            elif field.column.required:
                raise RequestError(name, "no such column", f"a column of {field.column.arrow}")
        for name, field in self._fields.items():
            if name not in columns:
                example = columns.get(given.get(field.column.family) or "")
                columns[name] = defaults(field, example, table.num_rows)
        for field in self._fields.values():
            check_column(field, columns[field.name])
        for fields in (self._request, self._families["candidate"]):
            flat = {f.name: columns[f.name].flatten() if f.column.listed else columns[f.name] for f in fields}
            fit_weights(flat, fields, lambda field, i: place_in(field, columns[field.name], i))
            for name in (field.name for field in fields if isinstance(field.column.kind, Weights)):
                listed = self._fields[name].column.listed
                columns[name] = pa.ListArray.from_arrays(columns[name].offsets, flat[name]) if listed else flat[name]
        return self._table(columns, table.num_rows)

    def check_multiplied(self, table: pa.Table) -> None:
        """Refuses a table without a number that the score multiplies by."""
        for label, column in multiplied(self._score).items():
            if f"candidate_{column}" not in table.column_names:
                raise RequestError(f"candidate_{column}", "no such column", f"the number that the score multiplies {label} by")

    def _table(self, columns: dict[str, pa.Array], rows: int) -> pa.Table:
        """With what no request has: the number of candidates, and zeros."""
        candidates = columns["candidate_item_id"]
        columns |= {field.name: defaults(field, candidates, rows) for field in self._not_served}
        columns["num_candidates"] = pc.list_value_length(candidates).cast(pa.int32())
        return pa.Table.from_arrays([columns[name] for name in self._arrow.names], schema=self._arrow)

    def _family(
        self, family: Family, key: str, requests: Sequence[Request], paths: Sequence[str], limits: Limits | None
    ) -> dict[str, pa.Array]:
        """The list columns of a family, of all requests."""
        most = None if limits is None else limits.candidates if family == "candidate" else limits.events
        fields = self._families[family]
        values: dict[str, list[Any]] = {field.key: [] for field in fields}
        offsets = [0]
        starts: list[tuple[str, bool]] = []
        for request, path in zip(requests, paths, strict=True):
            rows = request.get(key)
            if rows is None and family == "candidate":
                raise RequestError(f"{path}{key}", "nothing", "a list, which may be empty")
            where = f"{path}{key}"
            add = _add_columns if isinstance(rows, Mapping) else _add_rows
            length = add([] if rows is None else rows, fields, values, where, most)
            starts.append((where, isinstance(rows, Mapping)))
            offsets.append(offsets[-1] + length)
        ends = np.array(offsets)

        def place(field: Field, i: int) -> str:
            row = int(np.searchsorted(ends, i, side="right")) - 1
            where, by_column = starts[row]
            return f"{where}.{field.key}[{i - ends[row]}]" if by_column else f"{where}[{i - ends[row]}].{field.key}"

        flat = {field.name: self._column(field, values[field.key], partial(place, field), limits) for field in fields}
        fit_weights(flat, fields, place)
        packed = pa.array(ends, pa.int32())
        return {name: pa.ListArray.from_arrays(packed, array) for name, array in flat.items()}

    def _column(self, field: Field, values: list[Any], place: Callable[[int], str], limits: Limits | None) -> pa.Array:
        """Values as an array, each read and within its bounds; `place(i)` names the i-th in errors."""
        kind, arrow, types = field.json, field.column.kind.arrow, set(map(type, values))
        if limits is not None and str in types:
            for i, value in enumerate(values):
                if isinstance(value, str) and len(value) > limits.characters:
                    got = f"a text of {len(value):,} characters"
                    raise RequestError(place(i), got, f"at most {limits.characters:,} characters")
        integers, floats = pa.types.is_integer(arrow), pa.types.is_floating(arrow)
        if types == {type(None)}:
            return pa.array([kind.read(None)] * len(values), arrow)
        try:
            if types <= {str} and isinstance(field.column.kind, Text):
                return pa.array(values, pa.string())
            if isinstance(field.column.kind, Measure) and types <= {int, float, type(None)}:
                numbers = np.array(values, dtype=np.float64)  # NaN for None
                if not (outside(numbers, kind) & ~np.isnan(numbers)).any():
                    return pa.array(numbers, from_pandas=True).cast(arrow)
            plain = (integers and types <= {int}) or (floats and types <= {int, float})
            if plain and kind.low is not None:  # nothing to convert
                numbers = np.array(values, dtype=np.int64 if integers else np.float64)
                if not outside(numbers, kind).any():
                    if kind.zero:
                        numbers[numbers == 0] = kind.zero
                    return pa.array(numbers).cast(arrow)
        except (OverflowError, UnicodeEncodeError):
            pass  # one by one it shows which value it was
        return pa.array([read(value, kind, place, i) for i, value in enumerate(values)], arrow)


def _value(request: Request, field: Field, path: str) -> Any:
    value = request.get(field.key)
    if value is None and field.column.required:
        raise RequestError(f"{path}{field.key}", "nothing", field.json.expected)
    return field.json.default if value is None else value


def _check_length(values: Sequence[Any], most: int | None, where: str) -> None:
    if most is not None and len(values) > most:
        raise RequestError(where, f"{len(values):,}", f"at most {most:,}")


def _check_characters(arrays: Mapping[str, pa.Array], most: int) -> None:
    texts = (array.flatten() if pa.types.is_list(array.type) else array for array in arrays.values())
    count = sum(pc.sum(pc.utf8_length(text)).as_py() or 0 for text in texts if pa.types.is_string(text.type))
    if count > most:
        raise RequestError("request", f"texts of {count:,} characters in all", f"at most {most:,}")


def _add_rows(rows: Any, fields: list[Field], values: dict[str, list[Any]], where: str, most: int | None) -> int:
    """Adds the values of a list of objects; returns its length."""
    if isinstance(rows, str) or not isinstance(rows, Sequence):
        raise RequestError(where, shown(rows), "a list of objects, or an object of lists")
    _check_length(rows, most, where)
    keys = {field.key for field in fields}
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise RequestError(f"{where}[{i}]", shown(row), "an object")
        if not row.keys() <= keys:
            _check_keys(row, keys, f"{where}[{i}].")
    for field in fields:
        found = [row.get(field.key) for row in rows]
        if any(value is None for value in found):
            _fill(found, field, lambda i, key=field.key: f"{where}[{i}].{key}")  # type: ignore[misc]
        values[field.key] += found
    return len(rows)


def _add_columns(rows: Any, fields: list[Field], values: dict[str, list[Any]], where: str, most: int | None) -> int:
    """Adds the values of an object of lists of equal length; returns that."""
    _check_keys(rows, [field.key for field in fields], f"{where}.")
    for field in fields:
        if field.column.required and field.key not in rows:
            raise RequestError(f"{where}.{field.key}", "nothing", f"a list, each {field.json.expected}")
    lists: dict[str, list[Any]] = {}
    for key, column in rows.items():
        if isinstance(column, np.ndarray):
            column = column.tolist()
        if isinstance(column, str) or not isinstance(column, Sequence):
            raise RequestError(f"{where}.{key}", shown(column), "a list")
        _check_length(column, most, where)
        lists[key] = list(column)
    lengths = {key: len(column) for key, column in lists.items()}
    if len(set(lengths.values())) > 1:
        raise RequestError(where, f"lists of {', '.join(f'{n} {key}' for key, n in lengths.items())}", "lists of equal length")
    length = next(iter(lengths.values()), 0)
    for field in fields:
        found = lists.get(field.key, [None] * length)
        if any(value is None for value in found):
            _fill(found, field, lambda i, key=field.key: f"{where}.{key}[{i}]")  # type: ignore[misc]
        values[field.key] += found
    return length


def _fill(values: list[Any], field: Field, place: Callable[[int], str]) -> None:
    for i, value in enumerate(values):
        if value is None:
            if field.column.required:
                raise RequestError(place(i), "nothing", field.json.expected)
            values[i] = field.json.default


def _name(key: Any) -> str:
    """A key for a message: "" and the like would not be seen as they are, and long ones are cut."""
    return key if isinstance(key, str) and len(key) <= 100 and key.isidentifier() else short(key)


def _check_keys(given: Mapping[str, Any], valid: Any, path: str) -> None:
    for key in given:
        if key not in valid:
            raise RequestError(f"{path}{_name(key)}", "an unknown field", f"one of the schema{nearest(_name(key), valid)}")
