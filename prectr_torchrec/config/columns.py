"""The columns of a log's own: declared once, by where a value belongs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from prectr_torchrec.config.base import Section
from prectr_torchrec.system.errors import nearest

Place = Literal["users", "items", "queries", "requests", "impressions"]
PLACES: tuple[Place, ...] = ("users", "queries", "requests", "items", "impressions")
PREFIXES: dict[Place, str] = {
    "users": "user_",
    "queries": "query_",
    "requests": "",
    "items": "candidate_",
    "impressions": "candidate_",
}
"""What the names of the samples' columns begin with."""


class NumberColumn(Section):
    """Numbers; null and NaN are missing."""

    transform: Literal["none", "log1p", "signed_log"] = "none"
    """What rankers see of a number x: x itself, `log(1 + x)` of x that are not negative, or `sign(x) log(1 + |x|)`."""
    bins: int = Field(16, ge=1, le=256)
    """Quantile bins that preparation learns from the train part, for parts that encode by bins."""


class TimeColumn(NumberColumn):
    """Moments, such as when an item was listed, written as `timestamp` is; null is missing. Rankers see the days from then to the
    request, and a moment after the request is missing too."""


class VectorColumn(Section):
    """Lists of numbers, as many in each row; null is missing."""

    width: int = Field(ge=1, le=4096)
    """Numbers of a vector; `{vector: 32}` is short for it."""
    dtype: Literal["float32", "float16"] = "float32"
    """What vectors of items are kept in, which are in a file of their own; all others are float32."""
    history: bool = False
    """Of items: past events, of users and of peers, have the vectors of their items too, for parts that read them."""

    @model_validator(mode="before")
    @classmethod
    def _of_width(cls, given: Any) -> Any:
        return {"width": given} if isinstance(given, int) else given


class IdColumn(Section):
    """An id, a whole number or text; null is none."""


class IdsColumn(Section):
    """Lists of ids, such as tags; they may be empty."""

    separator: str | None = Field(None, min_length=1)
    """What stands between the ids where the column is text, as of CSV; blanks around an id do not count. null: it has lists."""
    weights: str | None = None
    """The column of the same table that has a weight for each id, as a list, or as text with the same separator."""


class PathColumn(IdsColumn):
    """Paths in a tree, such as `Home > Kitchen > Knives`: a list of an id for each level, each of the path down to there."""

    separator: str | None = Field(">", min_length=1)
    """What stands between the levels; blanks around a level do not count."""

    @model_validator(mode="after")
    def _is_text(self) -> PathColumn:
        if self.separator is None or self.weights is not None:
            raise ValueError("a path is text, with a separator between its levels and without weights")
        return self


class TextColumn(Section):
    """A further text of an item beside its title, such as its description; null is the empty text."""

    tokens: int = Field(32, ge=2, le=512)
    """Tokens kept of a text, [CLS] included."""


class LabelColumn(Section):
    """Something else than the click that a user may do with a candidate: 0, 1, or null where it is not known."""

    after: str = "click"
    """What comes before it: `click`, or another label. Of `click` itself nothing does."""
    time: str | None = None
    """The column of impressions with the time at which it happened, as of `timestamp`; null where it did not. A label without
    such a time is known `data.feedback_delay` after its impression."""
    window: int | None = Field(None, ge=1)
    """Seconds after the impression within which it counts as a label; null: `data.label_window`."""
    action: str | None = None
    """How `actions` call it, where impressions have no column of its name; null: by its name."""


class WeightsColumn(NamedTuple):
    """Weights of ids, which stand in a column of their own."""

    of: str
    """The column of ids."""
    separator: str | None


Settings = NumberColumn | TimeColumn | VectorColumn | IdColumn | IdsColumn | WeightsColumn | TextColumn | LabelColumn


class ColumnConfig(Section):
    """One declared column: the kind by its name, `number`, or with settings, `{number: {transform: log1p}}`."""

    number: NumberColumn | None = None
    time: TimeColumn | None = None
    vector: VectorColumn | None = None
    id: IdColumn | None = None
    ids: IdsColumn | None = None
    path: PathColumn | None = None
    text: TextColumn | None = None

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
    def kind(self) -> str:
        """By its name."""
        (name,) = (name for name, settings in self if settings is not None)
        return name

    @property
    def settings(self) -> NumberColumn | TimeColumn | VectorColumn | IdColumn | IdsColumn | TextColumn:
        """Of its kind."""
        return getattr(self, self.kind)


class Declared(NamedTuple):
    """A column of the log's own."""

    place: Place
    name: str
    settings: Settings

    @property
    def sample(self) -> str:
        """Its name in the samples; of an item's or impression's, that of the candidates."""
        prefix = PREFIXES[self.place]
        return prefix + (self.name.removeprefix(prefix) if self.place in ("users", "queries") else self.name)


def weights_of(declared: Iterable[Declared]) -> dict[str, str]:
    """Samples' name of each column of ids that has weights -> that of the weights."""
    columns = list(declared)
    names = {(c.place, c.name): c.sample for c in columns}
    return {names[c.place, c.settings.of]: c.sample for c in columns if isinstance(c.settings, WeightsColumn)}


class ColumnsConfig(Section):
    """Name -> kind, by where the log has the column."""

    users: dict[str, ColumnConfig] = {}
    """Of users; in samples and requests `user_<name>`."""
    items: dict[str, ColumnConfig] = {}
    """Of items; of a candidate `<name>`, in samples `candidate_<name>`; an `id` also of past events."""
    queries: dict[str, ColumnConfig] = {}
    """Of queries; in samples and requests `query_<name>`."""
    requests: dict[str, ColumnConfig] = {}
    """Columns of impressions that are the same for all candidates of a request, such as the hour; `<name>`."""
    impressions: dict[str, ColumnConfig] = {}
    """Columns of impressions, of a candidate as it was then, such as the engine's score; as of `items`."""

    def declared(self) -> Iterator[Declared]:
        """All of them; weights come after their ids."""
        for place in PLACES:
            for name, column in getattr(self, place).items():
                settings = column.settings
                yield Declared(place, name, settings)
                if isinstance(settings, IdsColumn) and settings.weights is not None:
                    yield Declared(place, settings.weights, WeightsColumn(name, settings.separator))
