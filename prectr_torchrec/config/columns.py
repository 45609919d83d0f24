"""The columns of a log's own: declared once, by where a value belongs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from prectr_torchrec.config.base import Section
from prectr_torchrec.system.errors import nearest

Place = Literal["users", "items", "queries", "requests", "impressions"]
PLACES: tuple[Place, ...] = ("users", "queries", "requests", "items", "impressions")


class NumberColumn(Section):
    """Numbers; null and NaN are missing."""

    transform: Literal["none", "log1p", "signed_log"] = "none"
    """What rankers see of a number x: x itself, `log(1 + x)` of x that are not negative, or `sign(x) log(1 + |x|)`."""
    bins: int = Field(16, ge=1, le=256)
    """Quantile bins that preparation learns from the train part, for parts that encode by bins."""


class VectorColumn(Section):
    """Lists of numbers, as many in each row; null is missing."""

    width: int = Field(ge=1, le=4096)
    """Numbers of a vector; `{vector: 32}` is short for it."""

    @model_validator(mode="before")
    @classmethod
    def _of_width(cls, given: Any) -> Any:
        return {"width": given} if isinstance(given, int) else given


class ColumnConfig(Section):
    """One declared column: the kind by its name, `number`, or with settings, `{number: {transform: log1p}}`."""

    number: NumberColumn | None = None
    vector: VectorColumn | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_one_kind(cls, given: Any) -> Any:
        if isinstance(given, cls):
            return given
        kinds = {given: {}} if isinstance(given, str) else given
        if not isinstance(kinds, dict) or len(kinds) != 1:
            valid = ", ".join(cls.model_fields)
            raise ValueError(f"give one kind, such as number, or {{number: {{transform: log1p}}}} (valid: {valid})")
        ((kind, settings),) = kinds.items()
        if kind not in cls.model_fields:
            raise ValueError(f"{kind!r} is no kind of column{nearest(str(kind), cls.model_fields)}")
        return {kind: {} if settings is None else settings}

    @model_serializer(mode="wrap")
    def _of_its_kind(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {kind: settings for kind, settings in dump(self).items() if settings is not None}

    @property
    def name(self) -> str:
        """Of its kind."""
        (name,) = (name for name, settings in self if settings is not None)
        return name

    @property
    def kind(self) -> NumberColumn | VectorColumn:
        """The settings of its kind."""
        return getattr(self, self.name)


class ColumnsConfig(Section):
    """Name -> kind, by where the log has the column."""

    users: dict[str, ColumnConfig] = {}
    """Of users; in samples and requests `user_<name>`."""
    items: dict[str, ColumnConfig] = {}
    """Of items; of a candidate `<name>`, in samples `candidate_<name>`."""
    queries: dict[str, ColumnConfig] = {}
    """Of queries; in samples and requests `query_<name>`."""
    requests: dict[str, ColumnConfig] = {}
    """Columns of impressions that are the same for all candidates of a request, such as the hour; `<name>`."""
    impressions: dict[str, ColumnConfig] = {}
    """Columns of impressions, of a candidate as it was then, such as the engine's score; as of `items`."""

    def declared(self) -> Iterator[tuple[Place, str, ColumnConfig]]:
        """Place and name of each, and the column."""
        return ((place, name, column) for place in PLACES for name, column in getattr(self, place).items())

    def kinds(self) -> Iterator[NumberColumn | VectorColumn]:
        """The settings of each, in the same order."""
        return (column.kind for _, _, column in self.declared())
