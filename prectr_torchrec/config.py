"""The typed configuration of a run: checked pydantic models; an unknown key is an error that names the nearest valid one.

Field docs stand under the fields; ``prectr config`` prints the resolved run with them. `config_files.py` reads and writes YAML.
"""

from __future__ import annotations

import itertools
import re
import typing
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from prectr_torchrec.config_attributes import check_attributes
from prectr_torchrec.config_base import ConfigError as ConfigError
from prectr_torchrec.config_base import LocalPath, Section, nearest
from prectr_torchrec.config_tables import CommunicationConfig, FeatureConfig, TableConfig
from prectr_torchrec.config_text import DistillConfig as DistillConfig
from prectr_torchrec.config_text import PairsConfig as PairsConfig
from prectr_torchrec.config_text import TextConfig as TextConfig
from prectr_torchrec.config_train import StageConfig as StageConfig
from prectr_torchrec.config_train import TrainConfig as TrainConfig

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
        return self


class RawLog(Section):
    impressions: RawTable = RawTable(path="impressions.parquet")
    """request_id, timestamp, user_id, query_id, item_id, position (optional), click."""
    items: RawTable = RawTable(path="items.parquet")
    """item_id, title and the attributes."""
    queries: RawTable = RawTable(path="queries.parquet")
    """query_id, query."""
    judgments: RawTable | None = RawTable(path="judgments.parquet")
    """query_id, item_id, relevance. Used when the file is there; null: never."""
    users: RawTable | None = RawTable(path="users.parquet")
    """user_id and the user attributes. Used when the file is there; null: never."""


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


class DataConfig(Section):
    raw: RawLog = RawLog()
    levels: Levels = Levels()
    item_attributes: list[str] = ["category_id", "brand_id"]
    """Columns of items that become `candidate_*`, `history_*` and `peer_*` ids; null becomes 0, "none"."""
    user_attributes: list[str] = []
    """Columns of users that become `user_*` request columns."""
    history_length: int = Field(50, ge=0)
    """L: the user's own latest events kept per request."""
    history_events: Literal["shown", "clicked"] = "shown"
    """`shown`: all shown items with a clicked/skipped flag; `clicked`: clicks only."""
    peer_length: int = Field(50, ge=0)
    """M: other users' latest events kept per request."""
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
        return self


class BatchConfig(Section):
    requests: int = Field(64, ge=1)
    """R: request rows of every batch of every rank."""
    candidates: int = Field(448, ge=1)
    """C: candidate rows of every batch; a batch closes before it would overflow."""
    shuffle_row_groups: int = Field(4, ge=1)
    """Row groups shuffled together in training."""
    workers: int = Field(0, ge=0)
    """Reader processes per rank; 0 reads in the training process."""


class PreferenceConfig(Section):
    """Who wants relevance, and what else they want: the personal and the cross-user parts of PRECTR-V2."""

    own: bool = False
    """Relevance preference from the own history: attention by intent and by category, and the own per-level record."""
    peers: bool = False
    """The same of other users under the query and its group."""
    gate: Literal["precision", "mlp", "none"] = "precision"
    """How own, peers and prior are weighted."""
    incentive: Literal["none", "shared", "per_level"] = "none"
    """Raise, lower or leave the click logits by relevance against preference: one value, or one per level; none at the prior."""
    taste: int = Field(0, ge=0)
    """Width of the taste vectors, inferred from the past events' titles; 0: none."""
    dim: int = Field(32, ge=4)
    heads: int = Field(2, ge=1)


class ModelConfig(Section):
    cross_layers: int = Field(0, ge=0)
    """Layers of TorchRec's low-rank cross network (DCN) in front of the click tower."""
    mixture: bool = True
    """One probability from relevance levels and click; false: a single click logit."""
    interest: bool = True
    """Target attention over the user's own history."""
    attention_dim: int = Field(32, ge=4)
    attention_heads: int = Field(2, ge=1)
    preference: PreferenceConfig = PreferenceConfig()
    text: bool = True
    """The text encoder; false: match features only."""
    match: bool = True
    """Hand-made features of text match between query and title."""
    statistics: list[Literal["user", "query", "group", "item"]] = ["user", "query", "item"]
    """Whose strictly past counters are dense features: by level those of the user, of others under the query and under its
    group; of the item over all levels."""
    position_bias: bool = True
    position_count: int = Field(50, ge=1)
    """Positions with a bias of their own; further down shares the last one."""
    known_grade: Literal["override", "feature", "none"] = "override"
    """A grade known when scoring: `override` replaces the predicted level distribution and enters the click tower;
    `feature` only enters the click tower; `none` leaves it unused."""
    relevance_tower: list[int] = [128, 64]
    click_tower: list[int] = [256, 128]
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def position_corrected(self) -> bool:
        """Whether counters are read with the examination of their positions; else the samples' `*_examined` stay unread."""
        return self.preference.own or self.preference.peers or "group" in self.statistics


class DebiasConfig(Section):
    """Exposure-bias correction: relevant rows against lowered copies of themselves."""

    weight: float = Field(0.0, ge=0)
    negatives: Literal["noise", "swap"] = "swap"
    """The title of another request (`swap`), or `noise` on the text side."""
    noise: float = Field(1.0, gt=0)
    """Standard deviation of the noise, in that of the text features over the batch."""
    minimum_level: int = Field(3, ge=2)
    """Rows of this level and above have lowered copies."""
    margin: float = 0.5
    """Per level of distance, in logits."""
    clip: float = Field(3.0, gt=0)
    """Upper bound of a row's hinge."""
    quantile: float = Field(0.1, ge=0, lt=1)
    """Rows that themselves score below this quantile of the batch are left out."""


class RehearsalConfig(Section):
    """A teacher's soft grades to learn from in each step beside the log (rehearsal, Robins 1995), so that the text side does
    not forget what `distill` taught it."""

    pairs: LocalPath | None = None
    """File of `prectr pairs`, of which the train queries' pairs are drawn; null: no rehearsal."""
    scores: list[LocalPath] = []
    """Folders of `prectr teach` on these pairs; the mean of several."""
    weight: float = Field(1.0, gt=0)
    batch_size: int = Field(256, ge=1)
    """Pairs of a step of every rank."""
    temperature: float = Field(2.0, gt=0)
    """T of the teacher's and the tower's distribution."""

    @model_validator(mode="after")
    def _pairs_have_scores(self) -> RehearsalConfig:
        if (self.pairs is None) != (not self.scores):
            raise ValueError("pairs and scores belong together: a file of `prectr pairs`, and folders of `prectr teach` on it")
        return self


class ObjectiveConfig(Section):
    anchor: float = Field(0.3, ge=0)
    """Weight of the cross-entropy of the level distribution on the grade."""
    anchor_on: Literal["level", "grade"] = "level"
    """Of the grade: its `level`, or the distribution over the two levels that the `grade` lies between, by
    `data.levels.level_grades`. `distill` does the latter, by the means of the grades that it learns from."""
    hidden_grades: float = Field(0.0, ge=0, lt=1)
    """Share of the training candidates, drawn anew in each step, whose grade the ranker does not see, so that it learns what to
    do without one; the anchor sees it."""
    consistency: float = Field(0.3, ge=0)
    """Weight of the hinge that keeps the levels' click probabilities in order."""
    consistency_margin: float = 0.0
    random_negatives: float = Field(0.0, ge=0)
    """Weight of the anchor on titles swapped within the batch, taken as level 1."""
    swap_share: float = Field(1.0, gt=0, le=1)
    """Share of the rows, drawn anew in each step, whose title is swapped, for this and for the debias. An interaction that
    reads texts together reads these pairs besides those of the log."""
    debias: DebiasConfig = DebiasConfig()
    rehearsal: RehearsalConfig = RehearsalConfig()
    load_balance: float = Field(0.01, ge=0)
    """Weight of the squared coefficient of variation of the incentive experts' mean loads."""


class RunConfig(Section):
    name: str
    data: DataConfig = DataConfig()
    pairs: PairsConfig = PairsConfig()
    text: TextConfig = TextConfig()
    batch: BatchConfig = BatchConfig()
    tables: dict[str, TableConfig] = {}
    features: dict[str, FeatureConfig] = {}
    """Sample column -> the table its ids are looked up in."""
    communication: CommunicationConfig = CommunicationConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()

    @model_validator(mode="after")
    def _features_have_tables(self) -> RunConfig:
        preference = self.model.preference
        unread: tuple[str, ...] = () if self.model.interest or preference.own else ("history_",)
        unread += () if preference.peers else ("peer_",)
        self.features = {n: f for n, f in self.features.items() if not n.startswith(unread)}
        for name, feature in self.features.items():
            if feature.table not in self.tables:
                hint = nearest(feature.table, self.tables)
                raise ValueError(f"features.{name}.table: there is no table {feature.table!r}{hint}")
            if feature.sequence and not name.startswith(f"{feature.sequence}_"):
                raise ValueError(f"features.{name}.sequence: {feature.sequence!r} needs a column named {feature.sequence}_*")
        for name in self.tables:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
                raise ValueError(f"tables: {name!r} becomes the name of files; of letters, digits, `_` and `-` it can be made")
            if not any(f.table == name for f in self.features.values()):
                raise ValueError(f"tables.{name}: no feature uses this table; remove it or add a feature")
        for ids in ("hashed", "managed"):
            looked_up = sorted(set(self.tables) - self.bag_tables(), reverse=True)
            widths = {self.tables[name].dim: name for name in looked_up if self.tables[name].ids == ids}
            if len(widths) > 1:
                said = " and ".join(f"tables.{name}.dim is {dim}" for dim, name in widths.items())
                raise ValueError(
                    f"{said}: {ids} tables of requests, histories, peers and candidates' sequences lie in one "
                    "EmbeddingCollection and have one dim; only tables that candidate_* bags alone use may differ"
                )
        return self

    def multi_probe_tables(self) -> set[str]:
        """Tables whose ids are in a hash table on the GPU."""
        return {n for n, table in self.tables.items() if table.ids == "managed" and table.managed.algorithm == "multi_probe"}

    def bag_tables(self) -> set[str]:
        """Tables of the EmbeddingBagCollection: those that only candidate-level bags use."""
        sequences = {f.table for n, f in self.features.items() if f.sequence or not n.startswith("candidate_")}
        return set(self.tables) - sequences


def validate_config(tree: dict[str, Any], source: str) -> RunConfig:
    """Checks a tree of plain values; `source` is named in errors."""
    return validate_section(RunConfig, tree, source)


AnySection = TypeVar("AnySection", bound=Section)


def validate_section(section: type[AnySection], tree: dict[str, Any], source: str) -> AnySection:
    """The same for one section that stands by itself."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(section, source, e) for e in error.errors())) from None


def _explain(root: type[Section], source: str, error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = _section_at(root, error["loc"][:-1])
        hint = nearest(str(error["loc"][-1]), section.model_fields) if section else ""
        return f"{source}: {location}: unknown key{hint}"
    message = error["msg"].removeprefix("Value error, ")
    prefix = f"{source}: {location}" if location else source
    return f"{prefix}: {message}" + ("" if isinstance(error["input"], dict) else f"; got {error['input']!r}")


def _section_at(section: Any, location: tuple[Any, ...]) -> type[Section] | None:
    """The section class that a location of an error lies in, through lists, dicts and unions."""
    for part in location:
        if isinstance(section, type) and issubclass(section, Section):
            field = section.model_fields.get(str(part))
            section = field.annotation if field else None
        else:
            section = next((a for a in typing.get_args(section) if a is not type(None) and a is not str), None)
            continue
        arguments = [a for a in typing.get_args(section) if isinstance(a, type) and issubclass(a, Section)]
        if arguments and typing.get_origin(section) not in (dict, list):
            section = arguments[0]
    return section if isinstance(section, type) and issubclass(section, Section) else None
