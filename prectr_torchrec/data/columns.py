"""The columns of samples: one list that preparation, reader, server and tests iterate over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa

from prectr_torchrec.config.attributes import TRAINED
from prectr_torchrec.config.columns import (
    Declared,
    IdColumn,
    IdsColumn,
    LabelColumn,
    NumberColumn,
    PathColumn,
    Place,
    Settings,
    TextColumn,
    TimeColumn,
    VectorColumn,
    WeightsColumn,
)
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.reads import COUNTED
from prectr_torchrec.data.column_kinds import (
    LARGEST,
    LARGEST_FLOAT16,
    Age,
    Flag,
    Grade,
    Id,
    Kind,
    Label,
    Measure,
    Number,
    Position,
    Text,
    Vector,
    Whole,
)
from prectr_torchrec.data.counted_kinds import Counter, Distribution, SampleWeight, Sums
from prectr_torchrec.data.list_kinds import Ids, Paths, Weights

Family = Literal["request", "history", "peer", "candidate"]
Table = Literal["requests", "users", "queries", "items", "events", "derived"]
LISTS: tuple[Family, ...] = ("history", "peer", "candidate")
"""What has lists in a row of samples; the lists of one have equal lengths in each row."""
AGE_MAX = 2**62
SAMPLE_WEIGHT = "sample_weight"
"""What each candidate counts in training, where candidates differ in that."""
CLICK_KNOWN = "known_click"
"""When a click is known, of events whose clicks may be known later than that they were shown."""

S = TypeVar("S", bound=Settings)


class Source(NamedTuple):
    """Where preparation takes the values from.

    Attributes:
        table: a table of the log by its rows' number, the `events` themselves, or `derived`, what is counted or compared.
        column: by the log's name.
        stored: of declared columns, what tables and column files call it: the log's own name could be one of ours.
    """

    table: Table
    column: str
    stored: str = ""

    @property
    def raw(self) -> str:
        """The raw table that has the column."""
        return "impressions" if self.table in ("requests", "events") else self.table


class Column(NamedTuple):
    """A column of samples.

    Attributes:
        family: whose value it is: of a request, or of each event or candidate in one of the lists.
        key: its name there, and in a served request.
        doc: what it means, for who sends requests.
        required: whether a served request has to have it.
        served: whether a served request may have it.
        counts: of counters of a label beside the click, the label, with an s.
        gathered: whether it is taken by the item's id from a file of its own, and samples lack it.
    """

    family: Family
    key: str
    kind: Kind
    source: Source
    doc: str = ""
    required: bool = False
    served: bool = True
    counts: str = ""
    gathered: bool = False

    @property
    def name(self) -> str:
        """In the sample file."""
        return self.key if self.family == "request" else f"{self.family}_{self.key}"

    @property
    def listed(self) -> bool:
        """Whether a row of samples has a list of values."""
        return self.family != "request"

    @property
    def declared_as(self) -> str:
        """The kind by the name that `data.columns` declares it with; "" of a column that is not declared there."""
        return self.kind.declared_as if self.source.stored else ""

    @property
    def arrow(self) -> pa.DataType:
        """In the sample file."""
        return pa.list_(self.kind.arrow) if self.listed else self.kind.arrow


def sample_columns(data: DataConfig, id_kinds: Mapping[str, str] | None = None) -> list[Column]:
    """The columns of samples, in the order of the file, and those that are gathered for them.

    `relevance` is a raw grade, `predicted` then a predicted distribution over the levels. `age` is in seconds before the request.
    The lists of `history` and `peer` run from the oldest to the newest event. Ids are 64-bit; declared ones are 0 where unknown.
    `*_trained` is how often a user, query, group or item occurs as a shown candidate of the train part, whenever that was: it
    weighs priors in training, and is no feature.

    Args:
        data: declared columns, levels and what the id 0 is.
        id_kinds: how the log writes its ids, as `prepared.json` has it.
    """
    ids = _Ids(data, id_kinds or {})
    declared = declared_columns(data, id_kinds=id_kinds)
    of_users, of_items = (
        [c for c in declared if c.source.table == table and isinstance(c.kind, Id)] for table in ("users", "items")
    )
    more = [column for column in declared if column not in (*of_users, *of_items)]
    requests, candidates = ([c for c in more if c.family == family] for family in ("request", "candidate"))
    return [
        *_of_request(data, ids, of_users),
        *requests,
        *_of_events(data, ids, [*of_items, *_kept_in_past(data)]),
        *_of_candidates(data, ids, of_items),
        *candidates,
    ]


def declared_columns(data: DataConfig, *tables: Table, id_kinds: Mapping[str, str] | None = None) -> list[Column]:
    """The columns that a log declares, those of some tables, or all; of items those of candidates."""
    ids, columns = _Ids(data, id_kinds or {}), []
    for number, declared in enumerate(data.declared()):
        family, table = _PLACES[declared.place]
        if not tables or table in tables:
            source = Source(table, declared.name, f"{declared.place}_{number}")
            key = declared.sample.removeprefix("candidate_") if family == "candidate" else declared.sample
            served = not isinstance(declared.settings, LabelColumn)
            kind, gathered = _declared_kind(declared, ids), table == "items" and isinstance(declared.settings, VectorColumn)
            doc = "As the log has it." if not gathered else "As the log has it; without it, that which is known of the item."
            columns.append(Column(family, key, kind, source, doc, served=served, gathered=gathered))
    return columns


def declared_of(data: DataConfig, settings: type[S]) -> list[tuple[Column, S]]:
    """The declared columns of a kind, with their settings."""
    pairs = zip(declared_columns(data), data.declared(), strict=True)
    return [(column, declared.settings) for column, declared in pairs if isinstance(declared.settings, settings)]


def attributes_trained(data: DataConfig) -> dict[str, str]:
    """How often an attribute of a candidate's item occurs in the train part: key -> what tables and column files call it."""
    return {f"{c.key}{TRAINED}": c.source.stored for c, _ in declared_of(data, IdColumn) if c.source.table == "items"}


def stored_name(data: DataConfig, place: Place, name: str) -> str:
    """What tables and column files call a declared column."""
    (stored,) = (f"{place}_{number}" for number, d in enumerate(data.declared()) if (d.place, d.name) == (place, name))
    return stored


def ids_of_weights(columns: Iterable[Column]) -> dict[str, str]:
    """Columns of weights by the log's names -> those of the ids that they are of."""
    return {column.source.column: column.kind.of for column in columns if isinstance(column.kind, Weights)}


def _kept_in_past(data: DataConfig) -> list[Column]:
    """Vectors of items that past events have too."""
    return [column for column, vector in declared_of(data, VectorColumn) if vector.history]


def family_of(column: str) -> Family | None:
    """`history`, `peer` or `candidate` by the name of a list column, else None."""
    prefix = column.partition("_")[0]
    return next((family for family in LISTS if family == prefix), None)


_PLACES: dict[Place, tuple[Family, Table]] = {
    "users": ("request", "users"),
    "queries": ("request", "queries"),
    "requests": ("request", "requests"),
    "items": ("candidate", "items"),
    "impressions": ("candidate", "events"),
}
"""Whose the columns declared there are, and what they are read from."""


def _declared_kind(declared: Declared, ids: _Ids) -> Kind:
    match declared.settings:
        case TimeColumn():
            return Age()
        case NumberColumn(transform=transform):
            return Measure(0) if transform == "log1p" else Measure()
        case VectorColumn(width=width, dtype=dtype):
            return Vector(width, LARGEST if dtype == "float32" else LARGEST_FLOAT16)
        case IdColumn():
            return ids.kind(declared.name)
        case PathColumn(separator=separator):
            return Paths("text", ids.data.zero_id, separator)
        case IdsColumn(separator=separator):
            return Ids(ids.written.get(declared.name, "either"), ids.data.zero_id, separator)  # type: ignore[arg-type]
        case WeightsColumn(of, separator):
            return Weights(of, separator)
        case TextColumn():
            return Text()
        case LabelColumn():
            return Label()


class _Ids(NamedTuple):
    data: DataConfig
    written: Mapping[str, str]

    def kind(self, column: str) -> Id:
        """Of a column by the log's name."""
        return Id(self.written.get(column, "either"), self.data.zero_id)  # type: ignore[arg-type]


_COUNTED = {
    "user": "to this user",
    "query": "to others under this query",
    "group": "to others under the query's group",
}


def _of_request(data: DataConfig, ids: _Ids, of_users: Sequence[Column]) -> list[Column]:
    def column(key: str, kind: Kind, table: Table, doc: str = "", **more: Any) -> Column:
        return Column("request", key, kind, Source(table, key), doc, **more)

    nobody = "null: nobody known." if data.zero_id == "id" else "0: nobody known."
    counters = (
        column(f"{who}_{what}", Counter(data.levels.count), "derived", _counter_doc(what, whom), counts=_of_label(what))
        for who, whom in _COUNTED.items()
        for what in data.counted
    )
    return [
        column("request_id", Id(looked_up=False), "requests", "Comes back with the scores."),
        column("timestamp", Whole(-(2**63), 2**63 - 1), "requests"),
        column("user_id", ids.kind("user_id"), "requests", nobody),
        *of_users,
        column("query_id", ids.kind("query_id"), "queries"),
        column("group_id", ids.kind("group_id"), "derived"),  # 0: the query has no known group
        column("query", Text(), "queries", "As the user typed it.", required=True),
        column("num_candidates", Whole(), "derived", served=False),
        column("user_events", Whole(), "derived", "How often anything was shown to this user before."),
        column("user_query_events", Whole(), "derived", "How often anything was shown to this user under this query before."),
        column("query_events", Whole(), "derived", "How often anything was shown to others under this query before."),
        *counters,
        *(column(f"{who}_trained", Whole(), "derived", served=False) for who in _COUNTED),
        *(column(f"{who}_sums", Sums(dim), "derived", _sums_doc(_COUNTED[who])) for who, dim in data.effects.items()),
    ]


def _sums_doc(whom: str) -> str:
    return f"Of mixed effects, over what was shown {whom}: the clicks' surplus, and their information."


def _of_label(what: str) -> str:
    return "" if what in COUNTED else what


def _counter_doc(what: str, whom: str) -> str:
    if what not in COUNTED:
        return f"By level, index 0 without a grade: {what} of what was shown {whom}."
    return f"By level, index 0 without a grade: times {what.replace('examined', 'shown, weighted by examination,')} {whom}."


def _of_items(family: Family, ids: _Ids, of_items: Sequence[Column], *, required: bool) -> list[Column]:
    item = Column(family, "item_id", ids.kind("item_id"), Source("items", "item_id"), required=required)
    return [item, *(column._replace(family=family) for column in of_items)]


def _of_grades(family: Family, data: DataConfig) -> list[Column]:
    predicted = Distribution(data.levels.count, unless="relevance")
    return [
        Column(family, "relevance", Grade(data.levels), Source("events", "relevance"), "A grade, where one is known."),
        Column(
            family, "predicted", predicted, Source("events", "predicted"), "Probabilities of the levels where there is no grade."
        ),
    ]


def _title(family: Family) -> Column:
    return Column(family, "title", Text(), Source("items", "title"), "As shown.")


def _position(family: Family) -> Column:
    return Column(family, "position", Position(), Source("events", "position"), "From 1; 0: not logged.")


def _of_events(data: DataConfig, ids: _Ids, of_items: Sequence[Column]) -> list[Column]:
    columns: list[Column] = []
    pasts: tuple[Literal["history", "peer"], ...] = ("history", "peer")
    for family in pasts:
        kept = data.ids_of_past(family)
        there = [column for column in of_items if column.gathered or column.source.column in kept]
        item, *attributes = _of_items(family, ids, there, required=False)
        columns += [
            item,
            Column(family, "query_id", ids.kind("query_id"), Source("queries", "query_id")),
            *attributes,
            *_of_grades(family, data),
            _position(family),
            Column(family, "click", Flag(), Source("events", "click"), "1: clicked, 0: not."),
            Column(family, "age", Whole(1, AGE_MAX), Source("derived", "age"), "Seconds before the request."),
        ]
    in_group = "1: under another query of the query's group."
    return [*columns, _title("history"), Column("peer", "in_group", Flag(), Source("derived", "in_group"), in_group)]


def _of_candidates(data: DataConfig, ids: _Ids, of_items: Sequence[Column]) -> list[Column]:
    item, *attributes = _of_items("candidate", ids, of_items, required=True)
    docs = {
        "shown": "How often it was shown before, to anyone.",
        "clicked": "How often it was clicked before.",
        "examined": "How often it was shown before, each time weighted by the examination of its position.",
    }
    docs |= {what: f"How many {what} of it there were before." for what in data.counted[len(docs) :]}
    counts = (
        Column("candidate", what, Number(), Source("derived", what), docs[what], counts=_of_label(what)) for what in data.counted
    )
    grade, predicted = _of_grades("candidate", data)
    weight = Column("candidate", SAMPLE_WEIGHT, SampleWeight(), Source("events", SAMPLE_WEIGHT), served=False)
    moment = Whole(-(2**63), 2**63 - 1)
    known = Column("candidate", CLICK_KNOWN, moment, Source("events", CLICK_KNOWN), "When its click is known.", served=False)
    return [
        item,
        _title("candidate"),
        *attributes,
        _position("candidate"),
        Column("candidate", "click", Label(), Source("events", "click"), "1: clicked, 0: not."),
        grade,
        predicted,
        *counts,
        *(
            Column("candidate", key, Whole(), Source("derived", key), served=False)
            for key in ("item_trained", *attributes_trained(data))
        ),
        *([weight] if data.weighted else []),
        *([known] if data.late else []),
    ]
