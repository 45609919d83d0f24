"""The configuration of data: the raw log, its columns, levels, split, and batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from prectr_torchrec.config.attributes import (
    check_attributes,
    check_columns,
    check_events,
    check_kept,
    check_labels,
    check_valid_from,
    check_weight,
)
from prectr_torchrec.config.base import LocalPath, Section
from prectr_torchrec.config.columns import ColumnsConfig, Declared, IdColumn, LabelColumn, Place
from prectr_torchrec.config.reads import COUNTED

ZeroId = Literal["none", "id"]
"""What the id 0 is."""


class RawTable(Section):
    path: LocalPath
    """File, folder or glob, relative to the raw folder; Parquet (`.parquet`) or CSV (`.csv`, `.tsv`, either with `.gz`)."""
    columns: dict[str, str] = {}
    """Our column name -> the file's column name, where they differ."""
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """Of CSV; null: the one of comma, tab, semicolon and bar that finds the columns in the header."""
    quote: str | None = Field('"', min_length=1, max_length=1)
    """Of CSV; doubled within a value. null: values are never quoted."""
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"
    """Of CSV."""

    @field_validator("delimiter", mode="before")
    @classmethod
    def _tab(cls, delimiter: Any) -> Any:
        return "\t" if delimiter == "\\t" else delimiter  # as a shell hands it over

    @model_validator(mode="after")
    def _fields_and_rows_can_be_told_apart(self) -> RawTable:
        given = [sign for sign in (self.delimiter, self.quote) if sign is not None]
        if len(set(given)) < len(given) or {"\n", "\r", "\0"} & set(given):
            raise ValueError(f"delimiter {self.delimiter!r} and quote {self.quote!r} must differ, and end no line")
        if self.quote is not None and not self.quote.isascii():
            raise ValueError(f"quote {self.quote!r} must be an ASCII character")
        return self


class RawLog(Section):
    impressions: RawTable = RawTable(path="impressions.parquet")
    """request_id, timestamp, user_id, query_id, item_id, position (optional), click."""
    searches: RawTable | None = None
    """request_id, timestamp, user_id, query_id, one row a request: with `results`, instead of impressions; null: none."""
    results: RawTable | None = None
    """request_id, item_id, position (optional), click, one row a shown item; null: there is none."""
    items: RawTable = RawTable(path="items.parquet")
    """item_id, title, the attributes, and the column that `data.valid_from` names."""
    queries: RawTable | None = RawTable(path="queries.parquet")
    """query_id, query. null: the log has no ids of queries. Then `impressions` and `judgments` have the `query` itself, and texts
    that agree but for case, blanks and Unicode form are one query."""
    judgments: RawTable | None = RawTable(path="judgments.parquet")
    """query_id, item_id, relevance. Used when the file is there; null: never."""
    users: RawTable | None = RawTable(path="users.parquet")
    """user_id and the user attributes. Used when the file is there; null: never."""
    actions: RawTable | None = None
    """request_id, item_id, action, timestamp: what users did with what they were shown, one row each. It tells of the labels, and
    of the click, that impressions have no column of; null: there is none."""

    @model_validator(mode="after")
    def _impressions_are_one_table_or_two(self) -> RawLog:
        if (self.searches is None) != (self.results is None):
            given, missing = ("searches", "results") if self.results is None else ("results", "searches")
            raise ValueError(f"{given} is here without {missing}; name both, or impressions, which are both in one table")
        if self.searches is not None and self.impressions != RawLog.model_fields["impressions"].default:
            raise ValueError("impressions are here, and so are searches and results; leave out the one or the others")
        return self


class Levels(Section):
    boundaries: list[float] = [1.5, 2.17, 2.84]
    """Ascending upper bounds: a grade <= boundaries[k-1] is level k; above the last one it is the highest level K."""
    grade_min: float = 1.0
    grade_max: float = 3.0
    """A grade outside [grade_min, grade_max] is an error."""
    level_grades: list[float] | None = None
    """The grade that stands for each level, lowest level first; null: the middle of the level's grades. Where grades are whole
    numbers, a level each, these are they."""

    @property
    def count(self) -> int:
        """K, the number of relevance levels."""
        return len(self.boundaries) + 1

    @property
    def grades(self) -> list[float]:
        """(K,) the grade that stands for each level."""
        return self.level_grades or [(low + high) / 2 for low, high in self._ranges()]

    def _ranges(self) -> list[tuple[float, float]]:
        return list(itertools.pairwise([self.grade_min, *self.boundaries, self.grade_max]))

    @model_validator(mode="after")
    def _ascending_within_the_grades(self) -> Levels:
        if self.boundaries != sorted(set(self.boundaries)) or not self.boundaries:
            raise ValueError(f"boundaries {self.boundaries} must be one or more strictly ascending grades")
        low, high = self.grade_min, self.grade_max
        if not low < high:
            raise ValueError(f"grade_min {low} must be below grade_max {high}")
        if not all(low <= boundary < high for boundary in self.boundaries):
            raise ValueError(f"boundaries {self.boundaries} must lie from grade_min {low} up to below grade_max {high}")
        given = self.level_grades
        if given is not None:
            ranges = self._ranges()
            if len(given) != self.count or not all(low <= g <= high for g, (low, high) in zip(given, ranges, strict=True)):
                raise ValueError(f"level_grades {given} must be {self.count} grades, one within each of {ranges}")
            if sorted(set(given)) != given:
                raise ValueError(f"level_grades {given} must ascend strictly")
        return self


class Split(Section):
    validation_from: int | None = None
    """Timestamp from which a request is validation; null: by `validation_fraction`."""
    test_from: int | None = None
    """Timestamp from which a request is test; null: by `test_fraction`."""
    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the requests before the test part, the latest ones."""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of all requests, the latest ones."""


Effect = Literal["user", "query"]
"""Whose effects are inferred from past events: of the user's own, or of other users' under the query."""


class DataConfig(Section):
    raw: RawLog = RawLog()
    levels: Levels = Levels()
    item_attributes: list[str] = ["category_id", "brand_id"]
    """Columns of items that become `candidate_*`, `history_*` and `peer_*` ids; null becomes 0, "none". Short for
    `columns.items: {<name>: id}`."""
    user_attributes: list[str] = []
    """Columns of users that become `user_*` ids of requests. Short for `columns.users: {<name>: id}`."""
    columns: ColumnsConfig = ColumnsConfig()
    """Further columns of the log, declared once: preparation, reader, rankers and requests have them: `id`, `ids`, `path`,
    `number`, `time`, `vector`, `text`."""
    labels: dict[str, LabelColumn] = {}
    """What is learned beside the click, such as `cart` and `order`, by their columns of impressions, 0 or 1. `click` may be
    here too, to say when it happened: `{click: {time: click_time}}`."""
    feedback_delay: int = Field(0, ge=0)
    """Seconds after its impression from which on a click, or a label without a time of its own, is known to later requests."""
    label_window: int | None = Field(None, ge=1)
    """Seconds after its impression within which what has a time of its own counts as a label, in all splits. A train impression
    whose window is still open when the validation part begins has no label. null: labels are as the log has them."""
    valid_from: str | None = None
    """The column of items with the time from which a row holds, written as `timestamp` is. An item may have several rows then; a
    request, and a past event, has the one that held when it was. null: an item has one row, which holds for all times."""
    weight: str | None = None
    """The column of impressions with the weight of each candidate in training, a finite number from 0 on; null: 1 each."""
    keep_unclicked: float = Field(1.0, gt=0, le=1)
    """Share of the train requests without a click or label that are trained on, drawn by a hash of their ids; each of them counts
    for the others of its kind too."""
    effects: dict[Effect, Annotated[int, Field(ge=1, le=256)]] = {}
    """Whose sums of past events the samples have, and of how many effects: written by `prectr effects`, not by hand."""
    history_length: int = Field(50, ge=0)
    """L: the user's own latest events kept per request."""
    history_events: str = "shown"
    """`shown`: all shown items with a clicked/skipped flag; `clicked`: clicks only; a label of `labels`, such as `cart`: what
    has it, in the order in which that became known."""
    history_columns: list[str] | None = None
    """Ids among the columns of items, attributes too, that events of the history have; null: all."""
    peer_length: int = Field(50, ge=0)
    """M: other users' latest events kept per request."""
    peer_events: str = "shown"
    """As of `history_events`; `peer_minimum` counts such events."""
    peer_columns: list[str] | None = None
    """As of `history_columns`."""
    peer_minimum: int = Field(10, ge=0)
    """With fewer peer events than this under the query, the query's group fills up the rest, marked as such."""
    query_group: str | None = "category_id"
    """The group of a query: this column of queries if it has one, else the most frequent value of this item attribute
    among the items judged for the query (judgments are no events, so nothing of the future enters); null: no fallback."""
    examination: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] | None = None
    """Chance that position 1, 2, ... is looked at, against position 1; deeper ones share the last. null: estimated from the
    clicks before the validation part, within each level. A position that is not logged counts as looked at."""
    zero_id: ZeroId = "none"
    """What the id 0 is in the log's columns of users, items, queries and attributes: `none`, as null is, or an `id` like any
    other. Of none, a user has no past and no row of their own; an item or query keeps its texts and shares the row of unknown
    ones."""
    positions_from: Literal[0, 1] | None = None
    """The first position of the log. From 0, all are raised by one, and null alone is a position that is not logged; from 1, 0 is
    not logged either. null: 0 where most requests have exactly one 0, and none has two; `prectr prepare` says so."""
    train_minimum_grade: float | None = None
    """Leaves out of the train split the candidates whose grade is below this or unknown, to learn from exposure as narrow as
    behind a coarse ranking stage; histories, counters and the other splits keep all."""
    split: Split = Split()
    memory: str = "2GB"
    """What preparation may hold in memory, whatever the log's size."""
    requests_per_shard: int = Field(16384, ge=1)
    requests_per_row_group: int = Field(1024, ge=1)

    @model_validator(mode="after")
    def _attributes_have_names_of_their_own(self) -> DataConfig:
        check_attributes(self.item_attributes, self.user_attributes, self.query_group)
        check_columns(self.columns, self.item_attributes, self.user_attributes, self.query_group)
        check_labels(self.labels, self.columns, self.item_attributes, self.user_attributes)
        check_weight(self.weight, self.declared())
        check_valid_from(self.valid_from, self.declared())
        check_events("history_events", self.history_events, list(self.further_labels))
        check_events("peer_events", self.peer_events, list(self.further_labels))
        for setting in ("history_columns", "peer_columns"):
            check_kept(setting, getattr(self, setting), self.ids_of("items"))
        if self.raw.queries is None and self.columns.queries:
            raise ValueError(f"columns.queries.{next(iter(self.columns.queries))}: raw.queries is null, and no other file has it")
        return self

    @property
    def timed(self) -> bool:
        """Whether clicks or labels may have times of their own."""
        return self.raw.actions is not None or any(label.time is not None for label in self.labels.values())

    @property
    def late(self) -> bool:
        """Whether what users did may be known later than that it was shown."""
        return self.timed or self.feedback_delay > 0

    @property
    def weighted(self) -> bool:
        """Whether candidates count differently in training."""
        return self.weight is not None or self.keep_unclicked < 1

    @property
    def counted(self) -> tuple[str, ...]:
        """What the counters count: shown, clicked, examined, and the labels, such as `carts`."""
        return (*COUNTED, *(f"{name}s" for name in self.further_labels))

    def action_of(self, label: str) -> str:
        """What actions call a label, or the click."""
        return self.labels.get(label, LabelColumn()).action or label

    @property
    def further_labels(self) -> dict[str, LabelColumn]:
        """The labels beside the click."""
        return {name: label for name, label in self.labels.items() if name != "click"}

    def declared(self) -> Iterator[Declared]:
        """The columns of the log's own: the attributes, which are ids, those of `columns`, and labels."""
        yield from (Declared("users", name, IdColumn()) for name in self.user_attributes)
        yield from (Declared("items", name, IdColumn()) for name in self.item_attributes)
        yield from self.columns.declared()
        yield from (Declared("impressions", name, settings) for name, settings in self.further_labels.items())

    def ids_of(self, place: Place) -> list[str]:
        """Names of the declared columns of one id."""
        return [name for where, name, settings in self.declared() if where == place and isinstance(settings, IdColumn)]

    def ids_of_past(self, whose: Literal["history", "peer"]) -> list[str]:
        """Names of the ids of items that past events have."""
        kept = self.history_columns if whose == "history" else self.peer_columns
        return [name for name in self.ids_of("items") if kept is None or name in kept]


class BatchConfig(Section):
    requests: int = Field(64, ge=1)
    """R: request rows of every batch of every rank."""
    candidates: int = Field(448, ge=1)
    """C: candidate rows of every batch; a batch closes before it would overflow."""
    shuffle_row_groups: int = Field(4, ge=1)
    """Row groups shuffled together in training."""
    workers: int = Field(0, ge=0)
    """Reader processes per rank; 0 reads in the training process."""
