"""The typed configuration of a run: checked pydantic models; an unknown key is an error that names the nearest valid one.

Field docs stand under the fields; ``prectr config`` prints the resolved run with them. `files.py` reads and writes YAML.
"""

from __future__ import annotations

import re
import typing
from typing import Any, TypeVar

from pydantic import ValidationError, model_validator

from prectr_torchrec.config.attributes import TRAINED
from prectr_torchrec.config.base import Section
from prectr_torchrec.config.data import BatchConfig, DataConfig
from prectr_torchrec.config.kinds import KINDS, TASTE, MixedConfig, ModelConfig, PRECTRConfig
from prectr_torchrec.config.losses import LossesConfig
from prectr_torchrec.config.reads import Reads
from prectr_torchrec.config.score import CLICK_ALONE, Score, multiplied, numbers_of_candidates
from prectr_torchrec.config.tables import CommunicationConfig, FeatureConfig, TableConfig, bag_tables, check_pooling, with_bags
from prectr_torchrec.config.text import DistillConfig, PairsConfig, TextConfig
from prectr_torchrec.config.trackers import TrackerKind
from prectr_torchrec.config.train import TrainConfig
from prectr_torchrec.system.errors import ConfigError, nearest


class RunConfig(Section):
    name: str
    data: DataConfig = DataConfig()
    pairs: PairsConfig = PairsConfig()
    text: TextConfig = TextConfig()
    batch: BatchConfig = BatchConfig()
    tables: dict[str, TableConfig] = {}
    features: dict[str, FeatureConfig] = {}
    """Feature, which is a sample column where `column` says nothing else -> the table its ids are looked up in."""
    communication: CommunicationConfig = CommunicationConfig()
    model: ModelConfig = PRECTRConfig()
    losses: LossesConfig = LossesConfig()
    score: Score = CLICK_ALONE
    """What candidates are ranked by: label -> what it is worth. The score is the expected worth, the sum of these times the
    labels' probabilities, such as `{click: 1, order: 20}`, or `{click: 1, order: {times: price}}` with a number of the
    candidate; a request may bring others."""
    train: TrainConfig = TrainConfig()
    distill: DistillConfig = DistillConfig()
    trackers: list[TrackerKind] = ["tensorboard"]
    """Where `train` and `distill` show their scalars, besides `metrics.jsonl`. MLflow and Weights & Biases are extras, and their
    clients read addresses and credentials from their own environment variables."""

    @model_validator(mode="after")
    def _features_have_tables(self) -> RunConfig:
        unread = tuple(f"{name}_" for name in {"history", "peer"} - self.model.compared_sequences())
        features = with_bags(self.features, self.data.declared())
        self.features = {n: f for n, f in features.items() if f.pooling or not n.startswith(unread)}
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
        check_pooling(self.features)
        return self

    @model_validator(mode="after")
    def _tastes_are_counted(self) -> RunConfig:
        counted = self.data.ids_of("items")
        for name in self.features if isinstance(self.model, MixedConfig) else ():
            if (found := TASTE.fullmatch(name)) and found[1] not in counted:
                valid = ", ".join(f"candidate_{attribute}_taste" for attribute in counted)
                raise ValueError(
                    f"features.{name}: vectors with a prior are of an attribute of items that is an id; valid: {valid}"
                )
        return self

    @model_validator(mode="after")
    def _labels_are_declared(self) -> RunConfig:
        declared = list(self.data.further_labels)
        for name in self.losses.labels:
            if name not in declared:
                hint = nearest(name, declared)
                raise ValueError(f"losses.labels.{name}: data.labels has no such label{hint}; losses.click is the click's")
        for name in self.score:
            if name not in ("click", *declared):
                raise ValueError(f"score.{name}: data.labels has no such label{nearest(name, ['click', *declared])}")
            if name not in self.predicted_labels:
                raise ValueError(f"score.{name}: a ranker of kind {self.model.kind!r} predicts the click alone")
        numbers = numbers_of_candidates(self.data.declared())
        for name, column in multiplied(self.score).items():
            if column not in numbers:
                hint = nearest(column, numbers)
                raise ValueError(
                    f"score.{name}.times: {column!r} is no number of data.columns.items or data.columns.impressions{hint}"
                )
        return self

    def reads(self) -> Reads:
        """What batches have: what the ranker reads, and the numbers that the score multiplies by."""
        reads = self.model.reads()
        trained = {f"{found[1]}{TRAINED}" for found in map(TASTE.fullmatch, self.features) if found}
        return reads._replace(candidate=reads.candidate | trained | set(multiplied(self.score).values()))

    @property
    def predicted_labels(self) -> tuple[str, ...]:
        """Those that the ranker predicts."""
        return ("click", *(self.data.further_labels if self.model.predicts_labels else ()))

    def multi_probe_tables(self) -> set[str]:
        """Tables whose ids are in a hash table on the GPU."""
        return {n for n, table in self.tables.items() if table.ids == "managed" and table.managed.algorithm == "multi_probe"}

    def bag_tables(self) -> set[str]:
        """Tables of an EmbeddingBagCollection."""
        return bag_tables(self.features)


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
    path = tuple(part for place, part in enumerate(error["loc"]) if not _is_tag(root, error["loc"], place))
    location = ".".join(str(part) for part in path)
    if error["type"] == "union_tag_invalid":
        return f"{source}: {location}.kind: {error['ctx']['tag']!r} is none{nearest(error['ctx']['tag'], KINDS)}"
    if error["type"] == "extra_forbidden":
        section = _section_at(root, error["loc"][:-1])
        hint = nearest(str(error["loc"][-1]), section.model_fields) if section else ""
        return f"{source}: {location}: unknown key{hint}"
    message = error["msg"].removeprefix("Value error, ")
    prefix = f"{source}: {location}" if location else source
    return f"{prefix}: {message}" + ("" if isinstance(error["input"], dict) else f"; got {error['input']!r}")


def _is_tag(root: type[Section], location: tuple[Any, ...], place: int) -> bool:
    """Whether a part of an error's location is no key but the kind of ranker that a section is of."""
    return root is RunConfig and place > 0 and location[place - 1] == "model" and location[place] in KINDS


def _section_at(section: Any, location: tuple[Any, ...]) -> type[Section] | None:
    """The section class that a location of an error lies in, through lists, dicts and unions."""
    for place, part in enumerate(location):
        if section is not None and _is_tag(RunConfig, location, place):
            section = KINDS[part]
            continue
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
