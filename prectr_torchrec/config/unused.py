"""Settings that somebody wrote and nothing reads: a warning each."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from prectr_torchrec.config.base import Section
from prectr_torchrec.config.columns import PLACES, IdColumn, IdsColumn
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.files import load_config, written_settings
from prectr_torchrec.config.kinds import PRECTRConfig, RankerSection
from prectr_torchrec.config.losses import LossesConfig
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.tables import FeatureConfig, TableConfig
from prectr_torchrec.system.errors import nearest

Rule = tuple[str, Callable[[RunConfig], bool], str]


def _prectr(unread: Callable[[PRECTRConfig], bool]) -> Callable[[RunConfig], bool]:
    return lambda c: isinstance(c.model, PRECTRConfig) and unread(c.model)


RULES: tuple[Rule, ...] = (
    (
        "model.parts.personal.gate",
        _prectr(lambda m: not (m.parts.personal and m.parts.personal.own and m.parts.personal.peers)),
        "model.parts.personal.own and peers are not both on",
    ),
    ("model.position_count", lambda c: not c.model.position_bias, "model.position_bias is off"),
    ("text.encoder", lambda c: not c.model.encodes, "the ranker has no text encoder"),
    ("text.encoder", lambda c: c.text.path is not None, "text.path brings its own"),
    ("text.interaction", lambda c: not c.model.encodes, "the ranker has no text encoder"),
    ("text.late_dim", lambda c: c.text.interaction != "late", "text.interaction is not 'late'"),
    ("text.start", lambda c: c.text.path is None, "text.path is null"),
    ("losses.consistency.*", _prectr(lambda m: not m.mixture), "model.mixture is off"),
    ("losses.consistency.margin", lambda c: c.losses.consistency.weight == 0, "losses.consistency.weight is 0"),
    ("losses.debias.*", lambda c: not c.losses.debias.weight, "losses.debias.weight is 0"),
    ("losses.debias.noise", lambda c: c.losses.debias.negatives != "noise", "losses.debias.negatives is not 'noise'"),
    (
        "model.swap_share",
        lambda c: not c.losses.random_negatives.weight and not c.losses.debias.weight,
        "the weights of losses.random_negatives and losses.debias are 0",
    ),
    ("losses.labels", lambda c: not c.model.predicts_labels, "the ranker predicts the click alone"),
    ("losses.rehearsal.*", lambda c: c.losses.rehearsal.pairs is None, "losses.rehearsal.pairs is null"),
    ("train.max_skipped", lambda c: c.train.on_bad_loss != "skip", "train.on_bad_loss is not 'skip'"),
    ("data.split.validation_fraction", lambda c: c.data.split.validation_from is not None, "data.split.validation_from is set"),
    ("data.split.test_fraction", lambda c: c.data.split.test_from is not None, "data.split.test_from is set"),
    ("data.label_window", lambda c: not c.data.timed, "no label has a time of its own"),
    ("data.peer_minimum", lambda c: c.data.query_group is None, "data.query_group is null"),
)
"""Pattern of settings, when they are not read, and why."""


def load_and_warn(name: str, overrides: typing.Sequence[str] = (), *, only: str = "") -> RunConfig:
    """`load_config`, with a warning on the standard error for each setting that is not used; `only`: those that begin so."""
    config = load_config(name, overrides)
    for warning in unused_settings(config, written_settings(name, overrides)):
        if warning.startswith(only):
            print(f"warning: {warning}", file=sys.stderr)
    return config


def unused_settings(config: RunConfig, written: dict[str, Any]) -> list[str]:
    """What is not used and why.

    Args:
        config: the configuration.
        written: the settings that its user wrote, `key.sub` -> value; what a shipped configuration says is not told.
    """
    found = [*_attributes_without_feature(config.data, config.features, config.pairs.category), *_columns_of_no_name(config.data)]
    if config.data.further_labels and not config.model.predicts_labels:
        found.append(f"data.labels is not used: a ranker of kind {config.model.kind!r} predicts the click alone")
    given = {key: value for key, value in written.items() if value and value != "none"}  # who switches off means no harm
    for key, default in _settings(config, given).items():
        if default:
            continue
        reasons = [why for pattern, unread, why in RULES if fnmatchcase(key, pattern) and unread(config)]
        reasons += [*_loss_reasons(config.losses, config.model, key), *_table_reasons(config.tables, key)]
        reasons += [*_feature_reasons(config.features, key), *_column_reasons(config.data, config.model, key)]
        found += [f"{key} is not used: {reasons[0]}"] if reasons else []
    return found


def _settings(config: Section, written: dict[str, Any]) -> dict[str, bool]:
    """The settings that were written, a free dictionary as one -> whether it is what it would be unwritten, as most are in the
    configuration that a run keeps."""
    found: dict[str, bool] = {}
    for key in written:
        section: Any = None
        node: Any = config
        path: list[str] = []
        for part in key.split("."):
            if isinstance(node, dict) and not any(isinstance(value, Section) for value in node.values()):
                break
            section, node = node, node.get(part) if isinstance(node, dict) else getattr(node, part, None)
            path.append(part)
        field = type(section).model_fields.get(path[-1]) if isinstance(section, Section) else None
        found[".".join(path)] = field is not None and node == field.get_default(call_default_factory=True)
    return found


def _attributes_without_feature(data: DataConfig, features: dict[str, FeatureConfig], category: str) -> Iterator[str]:
    read = {feature.column or name for name, feature in features.items()}
    settings = {("items", name): "data.item_attributes" for name in data.item_attributes}
    settings |= {("users", name): "data.user_attributes" for name in data.user_attributes}
    for column in data.declared():
        if not isinstance(column.settings, IdColumn | IdsColumn):
            continue
        places = ["candidate", "history", "peer"] if column.place == "items" and isinstance(column.settings, IdColumn) else []
        columns = [f"{family}_{column.name}" for family in places] or [column.sample]
        grouped = column.place == "items" and column.name in (data.query_group, category)
        if not read.intersection(columns) and not grouped:
            where = settings.get((column.place, column.name), f"data.columns.{column.place}")
            yield f"{where}: {column.name!r} is not used: no feature reads {', '.join(columns)}; add one, with a table"


def _columns_of_no_name(data: DataConfig) -> Iterator[str]:
    """Names that `data.raw` maps to columns of files, and that are none of ours."""
    declared: dict[str, list[str]] = {}
    for column in data.declared():
        table = "impressions" if column.place == "requests" else column.place
        apart = {"requests": "searches", "impressions": "results"} if data.raw.searches else {}
        declared.setdefault(apart.get(column.place, table), []).append(column.name)
    times = [label.time for label in data.labels.values() if label.time is not None]
    times += [data.weight] if data.weight else []
    ours = {
        "impressions": ["request_id", "timestamp", "user_id", "query_id", "item_id", "position", "click", *times],
        "searches": ["request_id", "timestamp", "user_id", "query_id"],
        "results": ["request_id", "item_id", "position", "click", *times],
        "items": ["item_id", "title"],
        "queries": ["query_id", "query", *([data.query_group] if data.query_group else [])],
        "judgments": ["query_id", "item_id", "relevance"],
        "users": ["user_id"],
        "actions": ["request_id", "item_id", "action", "timestamp"],
    }
    ours = {name: [*columns, *declared.get(name, ())] for name, columns in ours.items()}
    if data.raw.queries is None:
        ours = {name: [*columns, *(["query"] if "query_id" in columns else [])] for name, columns in ours.items()}
    for name, valid in ours.items():
        mapped = getattr(data.raw, name)
        for theirs in mapped.columns if mapped is not None else ():
            if theirs not in valid:
                yield f"data.raw.{name}.columns.{theirs} is not used: no column of ours has this name{nearest(theirs, valid)}"


def _loss_reasons(losses: LossesConfig, model: RankerSection, key: str) -> Iterator[str]:
    section, name, *_ = (*key.split("."), "")
    loss = dict(losses).get(name) if section == "losses" else None
    if loss is not None and (missing := loss.reads - model.finds()):
        yield f"the ranker, of kind {model.kind!r} and as it is set, finds no {min(missing)}"


def _table_reasons(tables: dict[str, TableConfig], key: str) -> Iterator[str]:
    section, name, setting = (*key.split("."), "", "", "")[:3]
    if section != "tables" or (table := tables.get(name)) is None:
        return
    if setting == "managed" and table.ids != "managed":
        yield f"tables.{name}.ids is not 'managed'"
    if setting == "cache" and table.kernel_facts.cache is None:
        yield f"tables.{name}.kernel {table.kernel!r} has no cache"
    if setting == "buckets" and not table.in_buckets:
        yield f"tables.{name} is not shared out by buckets"
    if setting == "stochastic_rounding" and table.dtype == "fp32":
        yield f"tables.{name}.dtype is fp32"


def _feature_reasons(features: dict[str, FeatureConfig], key: str) -> Iterator[str]:
    section, name, *_ = (*key.split("."), "")
    if section == "features" and name not in features:
        yield f"no part of the model compares {name.partition('_')[0]} events"


_READ_BY = {"number": "numbers", "vector": "vectors", "text": "further_match"}
"""Kind of column -> the part that reads it."""


def _column_reasons(data: DataConfig, model: RankerSection, key: str) -> Iterator[str]:
    for place in PLACES:
        for name, column in getattr(data.columns, place).items():
            ours = f"{key}.".startswith(f"data.columns.{place}.{name}.") and column.kind in _READ_BY
            if ours and column.kind not in model.reads().declared:
                yield f"model.parts.{_READ_BY[column.kind]} is null"
