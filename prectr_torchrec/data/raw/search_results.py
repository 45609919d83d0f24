"""A log in two tables: `searches`, one row a request, and `results`, one row a shown item. Joined they are the impressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.columns import Source as ColumnSource
from prectr_torchrec.data.raw.source import Connection, FoundRow, Source, Table

SEARCHES, RESULTS = "searches", "results"


def raw_table(data: DataConfig, source: ColumnSource) -> str:
    """The raw table that has a column."""
    apart = {"requests": SEARCHES, "events": RESULTS} if data.raw.searches else {}
    return apart.get(source.table, source.raw)


def shown_items(sources: Mapping[str, Source]) -> Source:
    """The table with a row for each shown item."""
    return sources[RESULTS] if RESULTS in sources else sources["impressions"]


class SearchResults(Table):
    """Results with what their searches have; rows are found in the file that has the first column asked for.

    Args:
        searches: with one row a request.
        results: with one row a shown item of a request.
    """

    def __init__(self, searches: Table, results: Table) -> None:
        columns = {**searches.source.columns, **results.source.columns}
        super().__init__(replace(results.source, columns=columns), {}, {**searches.names, **results.names})
        self._searches, self._results = searches, results

    def select(self) -> str:
        return f"SELECT * FROM ({self._results.select()}) JOIN ({self._searches.select()}) USING (request_id)"

    def select_ids(self, column: str) -> str:
        return self.owner(column).select_ids(column)

    def find(self, con: Connection, columns: Sequence[str], condition: str, limit: int) -> list[FoundRow]:
        keys = con.execute(f"SELECT request_id, item_id FROM ({self.select()}) WHERE {condition} ORDER BY ALL LIMIT {limit}")
        return [self._row(con, columns, *key) for key in keys.fetchall()]

    def _row(self, con: Connection, columns: Sequence[str], request: int, item: int) -> FoundRow:
        conditions = {id(self._searches): f"request_id = {request}"}
        conditions[id(self._results)] = f"request_id = {request} AND item_id = {item}"
        values: list[Any] = []
        for column in columns:
            owner = self.owner(column)
            ((file, row, found),) = owner.find(con, [column], conditions[id(owner)], 1)
            values.append((file, row, *found))
        return (*values[0][:2], tuple(value for _, _, value in values))

    def owner(self, column: str) -> Table:
        return self._results if column in self._results.source else self._searches
