"""The ids of a log as it writes them: kept by `prepare` where they are text, and given back in whatever tells of a row.

`prepare` leaves `ids/<column>.parquet` (id, text), sorted by id, of each column of text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from prectr_torchrec.config.data import ZeroId
from prectr_torchrec.data.hashing import ZERO_ID, hash_id, hash_id_sql, normalised, normalised_sql, zero_becomes
from prectr_torchrec.data.raw.files import scan_parquet
from prectr_torchrec.data.raw.readings import IdKind, identifier
from prectr_torchrec.data.raw.source import Connection, Source, Table, open_duckdb, quote, text_literal
from prectr_torchrec.data.schema import MANIFEST, load_manifest

IDS = "ids"
COLUMNS = {"request_id": "impressions", "user_id": "impressions", "query_id": "queries", "item_id": "items"}
"""Columns whose ids come out again, and the raw table that has all of them."""
_ARROW = {"text": pa.string(), "normalised": pa.string(), "unsigned": pa.uint64(), "integer": pa.int64()}


_TEXTS = ("text", "normalised")


def write_ids(con: Connection, sources: Mapping[str, Source], kinds: Mapping[str, IdKind], zero: ZeroId, folder: Path) -> None:
    """Writes the folder `ids`."""
    folder.mkdir()
    for column, table in COLUMNS.items():
        if (kind := kinds[column]) in _TEXTS:
            reading = identifier(kind, None if column == "request_id" else zero)
            source = sources[table] if table in sources else sources["searches"]
            ids = Table(source, {column: reading}).select_ids(column)
            text = normalised_sql("text") if kind == "normalised" else "text"
            texts = f"SELECT id, any_value({text}) AS text FROM ({ids}) WHERE id IS NOT NULL GROUP BY id ORDER BY id"
            path = text_literal(folder / f"{column}.parquet")
            con.execute(f"COPY ({texts}) TO {path} (FORMAT parquet, COMPRESSION zstd)")


@dataclass(frozen=True)
class LogIds:
    """How the ids of a split come from the log's, and go back.

    Attributes:
        folder: the prepared folder.
        kinds: column -> `integer`, `unsigned` (64 bits), `text` or `normalised` text; integer where it says nothing.
        zero: what 0 is in the log.
        requests: the column that the split's `request_id` has its ids of: pairs without a request have their query's.
    """

    folder: Path
    kinds: Mapping[str, str]
    zero: ZeroId = "none"
    requests: str = "request_id"

    @classmethod
    def of_split(cls, split: Path) -> LogIds:
        """Those of the folder of a split; integers as they are where it is in no prepared folder."""
        folder = split.absolute().parent
        manifest = load_manifest(folder) if (folder / MANIFEST).is_file() else {}
        zero: ZeroId = manifest["settings"]["data"].get("zero_id", "none") if manifest else "none"
        by_query = split.name in manifest.get("by_query", ())
        return cls(folder, manifest.get("id_kinds", {}), zero, "query_id" if by_query else "request_id")

    def kind(self, column: str) -> str:
        return self.kinds.get(self._column(column), "integer")

    def arrow(self, column: str) -> pa.DataType:
        """The type of the log's ids."""
        return _ARROW[self.kind(column)]

    def parse(self, column: str, value: str | int) -> int:
        """Our id of one of the log's, or of how it is written.

        Raises:
            ValueError: the log's are whole numbers, and this is none.
        """
        if (kind := self.kind(column)) in _TEXTS:
            number = hash_id(normalised(str(value)) if kind == "normalised" else str(value))
        else:
            try:
                number = int(value)
            except ValueError:
                raise ValueError(f"{column} {value!r}: the log's are whole numbers") from None
            number -= 2**64 * (2**63 <= number < 2**64)
        found, becomes = zero_becomes(self.zero)
        return becomes if number == found and self._column(column) != "request_id" else number

    def restore(self, column: str, ids: Iterable[int]) -> dict[int, Any]:
        """Our ids -> the log's; None: none."""
        distinct = sorted({int(value) for value in ids})
        table = pa.table({"id": pa.array(distinct, pa.int64())})
        with open_duckdb() as con:
            con.register("wanted", table)
            value, join = self.sql(column, "wanted.id")
            return dict(con.execute(f"SELECT wanted.id, {value} FROM wanted {join}").fetchall())

    def sql(self, column: str, id_: str) -> tuple[str, str]:
        """SQL of the log's id of one of ours, and what has to be joined for it.

        Raises:
            ValueError: the ids of text are not there.
        """
        kind, column = self.kind(column), self._column(column)
        if kind in _TEXTS:
            path, name = self.folder / IDS / f"{column}.parquet", quote(f"text of {id_}")
            if not path.is_file():
                raise ValueError(f"{path}: there is no such file, which has the log's own ids; run `prectr prepare` again")
            return f"{name}.text", f"LEFT JOIN {scan_parquet([path])} {name} ON {name}.id = {id_}"
        if self.zero == "id" and column != "request_id":
            id_ = f"CASE WHEN {id_} = {ZERO_ID} THEN 0 ELSE nullif({id_}, 0) END"
        return (f"(({id_})::HUGEINT + CASE WHEN {id_} < 0 THEN {2**64} ELSE 0 END)::UBIGINT" if kind == "unsigned" else id_), ""

    def restored(self, schema: pa.Schema, columns: Iterable[str]) -> tuple[pa.Schema, str, str]:
        """A schema with the log's ids in these columns, SQL of all its columns, and of what has to be joined for that."""
        values, joins = {name: quote(name) for name in schema.names}, []
        for name in columns:
            values[name], join = self.sql(name, name)
            joins.append(join)
            place = schema.get_field_index(name)
            schema = schema.set(place, schema.field(place).with_type(self.arrow(name)))
        return schema, ", ".join(f"{value} AS {quote(name)}" for name, value in values.items()), " ".join(joins)

    def _column(self, column: str) -> str:
        return self.requests if column == "request_id" else column


def our_id_sql(value: str, type_: pa.DataType, zero: ZeroId) -> str:
    """SQL of our id of one of the log's, of a column of this type; none is 0."""
    if pa.types.is_string(type_):
        value = hash_id_sql(f"nullif({value}, '')")
    elif pa.types.is_uint64(type_):
        value = f"({value}::HUGEINT - CASE WHEN {value} >= {2**63} THEN {2**64} ELSE 0 END)::BIGINT"
    if zero == "id":
        value = f"CASE WHEN {value} = 0 THEN {ZERO_ID} ELSE {value} END"
    return f"coalesce({value}, 0)"
