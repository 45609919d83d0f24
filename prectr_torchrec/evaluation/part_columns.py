"""What a ranker reports of each candidate, as columns that say what they mean."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
from torch import Tensor

from prectr_torchrec.modules import ReportedPart

_MEANING = b"meaning"


def part_columns(reported: Mapping[str, ReportedPart]) -> list[pa.Field]:
    """The columns of a predictions file for what a ranker reports, with their meaning in their metadata.

    A part of several values is a column of lists, or one column a value where the values have names.
    """
    fields = []
    for name, part in reported.items():
        if part.where != "explanations":
            kind = pa.float32() if part.names or part.width == 1 else pa.list_(pa.float32())
            fields += [pa.field(column, kind, metadata={_MEANING: part.meaning}) for column in part.names or (name,)]
    return fields


def part_values(reported: Mapping[str, ReportedPart], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values (C,) or (C, n) by column of what a ranker has reported; see `part_columns`."""
    found: dict[str, Tensor] = {}
    for name, part in reported.items():
        found |= dict(zip(part.names, parts[name].unbind(1), strict=True)) if part.names else {name: parts[name]}
    return found


def meanings(schema: pa.Schema) -> dict[str, str]:
    """Column -> what it says, of those that `part_columns` made, but for lists."""
    parts = (field for field in schema if _MEANING in (field.metadata or {}) and pa.types.is_floating(field.type))
    return {field.name: field.metadata[_MEANING].decode() for field in parts}
