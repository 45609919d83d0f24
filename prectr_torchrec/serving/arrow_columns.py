"""Columns of Arrow tables as the samples have them, and those that a table lacks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prectr_torchrec.data.column_kinds import LARGEST, Id, Measure, Text, Vector, vector_rows
from prectr_torchrec.data.counted_kinds import Row
from prectr_torchrec.data.json_values import id_field
from prectr_torchrec.data.list_kinds import Ids, Paths, Weights
from prectr_torchrec.serving.fields import Field, RequestError, outside, read, shown
from prectr_torchrec.serving.lists import bad_lists


def cast_column(column: pa.ChunkedArray, field: Field) -> pa.Array:
    """A column of a table as the samples have it.

    Raises:
        RequestError: it cannot be, or lacks values.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    given, of_id = array.type, isinstance(field.column.kind, Id | Ids)
    if isinstance(field.column.kind, Vector):
        _check_widths(array, field, field.column.kind.width)
    try:
        array = _path_ids(array, field) if isinstance(field.column.kind, Paths) else array
        array = _our_ids(array, field) if of_id else array
        if isinstance(field.column.kind, Weights):
            array = _on_values(array, lambda values: values, nulls=not field.column.listed)
        value = array.type
        while pa.types.is_list(value):
            value = value.value_type
        # ids from 2**63 on in two's complement
        array = array.cast(field.column.arrow, safe=not (of_id and pa.types.is_uint64(value)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RequestError(field.name, f"a column of {given} ({error})", f"a column of {field.column.arrow}") from None
    if array.null_count and (field.column.listed or not field.column.kind.nullable):
        raise RequestError(field.name, f"{array.null_count} nulls", f"{field.column.arrow} in every row")
    return array


def _check_widths(array: pa.Array, field: Field, width: int) -> None:
    """Refuses a list of another length among the vectors of an Arrow column."""
    flat = array.flatten() if field.column.listed and _has_lists(array) else array
    if _has_lists(flat):
        lengths = pc.list_value_length(flat).fill_null(width).to_numpy(zero_copy_only=False)
        if (wrong := np.flatnonzero(lengths != width)).size:
            number = int(wrong[0])
            raise RequestError(place_in(field, array, number), f"{lengths[number]} numbers", field.json.expected)


def _has_lists(array: pa.Array) -> bool:
    return pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type)


def _our_ids(array: pa.Array, field: Field) -> pa.Array:
    """Ids of an Arrow column: texts are hashed, and null is none where there may be none; integers are as in samples."""
    kind = field.column.kind
    assert isinstance(kind, Id | Ids)

    def read_ids(flat: pa.Array) -> pa.Array:
        if flat.null_count and (field.column.required or isinstance(kind, Ids)):
            raise RequestError(field.name, f"{flat.null_count} nulls", field.json.expected)
        if pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type):
            one = id_field(kind.written, kind.zero)
            texts = enumerate(flat.to_pylist())
            return pa.array([read(text, one, lambda i: f"{field.name}, value {i}", i) for i, text in texts], pa.int64())
        flat = flat.cast(pa.int64()) if pa.types.is_null(flat.type) else flat
        return flat.fill_null(0) if flat.null_count else flat

    return _on_values(array, read_ids, nulls=not field.column.listed)


def _path_ids(array: pa.Array, field: Field) -> pa.Array:
    """Lists of ids of an Arrow column of paths as text; other columns as they are."""
    flat = array.flatten() if field.column.listed and _has_lists(array) else array
    if not (pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type)):
        return array
    paths = [read(path, field.json, lambda i: f"{field.name}, value {i}", i) for i, path in enumerate(flat.to_pylist())]
    found = pa.array(paths, field.column.kind.arrow)
    return pa.ListArray.from_arrays(array.offsets.cast(pa.int32()), found) if field.column.listed else found


def _on_values(array: pa.Array, change: Callable[[pa.Array], pa.Array], *, nulls: bool) -> pa.Array:
    """An array, or lists of any depth, with other values; `nulls`: null lists become empty, at the outermost too."""
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        return change(array)
    if array.null_count and not nulls:
        return array
    lengths = pc.list_value_length(array).fill_null(0).to_numpy().cumsum()
    inner = _on_values(array.flatten(), change, nulls=True)
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], lengths]), pa.int32()), inner)


def defaults(field: Field, example: pa.Array | None, rows: int) -> pa.Array:
    """A column that a table lacks; `example`: another one of its list, as long in every row."""
    column = field.column
    default = field.json.read(None) if field.json.default is None else field.json.default
    if not column.listed:
        return pa.array([default] * rows, column.arrow)
    lengths = np.zeros(rows, np.int32) if example is None else pc.list_value_length(example).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array([default] * int(offsets[-1]), column.kind.arrow))


def check_column(field: Field, column: pa.Array) -> None:
    """Refuses values of an Arrow column that a request could not have."""
    if isinstance(field.column.kind, Row):
        lengths, bins = pc.list_value_length(column).to_numpy(zero_copy_only=False), field.column.kind.width
        if (wrong := np.flatnonzero(lengths != bins)).size:
            row = int(wrong[0])
            raise RequestError(f"row {row}: {field.name}", f"{lengths[row]} values", field.json.expected)
    if isinstance(field.column.kind, Ids | Weights):
        lists = column.flatten() if field.column.listed else column
        if (wrong := np.flatnonzero(bad_lists(lists, weights=isinstance(field.column.kind, Weights)))).size:
            first = int(wrong[0])
            raise RequestError(place_in(field, column, first), shown(lists[first].as_py()), field.json.expected)
        return
    measured, vectors = isinstance(field.column.kind, Measure), isinstance(field.column.kind, Vector)
    if not (pa.types.is_list(column.type) or pa.types.is_integer(column.type) or measured or vectors):
        return
    flat = column.flatten() if pa.types.is_list(column.type) else column
    if isinstance(field.column.kind, Text):
        return
    known = flat.is_valid().to_numpy(zero_copy_only=False)
    if vectors:
        bad = ~(np.abs(vector_rows(flat)) <= LARGEST).all(1)
    else:
        numbers = flat.fill_null(0).to_numpy(zero_copy_only=False)
        bad = outside(numbers, field.json) & ~(np.isnan(numbers) if measured else False)
    if (wrong := np.flatnonzero(bad & known)).size:
        first = int(wrong[0])
        raise RequestError(place_in(field, column, first), shown(flat[first].as_py()), field.json.expected)


def place_in(field: Field, column: pa.Array, number: int) -> str:
    """Where a value of an Arrow column stands: the n-th, of lists the n-th of all."""
    if not (field.column.listed or isinstance(field.column.kind, Row)):
        return f"row {number}: {field.name}"
    ends = np.cumsum(pc.list_value_length(column).to_numpy(zero_copy_only=False))
    row = int(np.searchsorted(ends, number, side="right"))
    return f"row {row}: {field.name}[{number - (ends[row - 1] if row else 0)}]"
