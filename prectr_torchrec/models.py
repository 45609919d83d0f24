"""A configuration becomes a ranker, wired by the features that it names; in training as in serving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from prectr_torchrec.config import columns
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.kinds import FusedConfig, Member
from prectr_torchrec.config.parts import PartSection
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.config.tables import FeatureConfig, TableConfig
from prectr_torchrec.data.columns import Column, declared_of
from prectr_torchrec.data.tokenizer import load_tokenizer, special_ids
from prectr_torchrec.data.tokens import vocabulary_size
from prectr_torchrec.modules import Given, NumberColumn, Part, RankingModel, VectorColumn, Widths
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text.build import build_match, build_relevance

Learned = Mapping[str, Mapping[str, Any]]
"""What the train part tells of columns, by sample column."""


def build_model(config: RunConfig, tokenizer: Path, *, kept: bool = False, numbers: Learned | None = None) -> RankingModel:
    """The ranker.

    Args:
        config: the run.
        tokenizer: tokenizer folder of the prepared data or of the run.
        kept: as of `text.build.build_relevance`.
        numbers: what the train part tells of the log's own numbers and vectors, as of `prepared.json`; None: weights that are
            loaded bring it.

    Raises:
        ConfigError: features and model do not fit together.
    """
    settings, levels, vocabulary = config.model, config.data.levels, load_tokenizer(tokenizer)
    given = Given(
        widths=feature_widths(config.tables, config.features),
        level_grades=levels.grades,
        grade_range=(levels.grade_min, levels.grade_max),
        vocab_size=vocabulary_size(vocabulary.get_vocab()),
        special_tokens=special_ids(vocabulary),
        match=partial(build_match, tokenizer, config.text.stemmer),
        relevance=partial(build_relevance, config, tokenizer, kept=kept),
        numbers=_numbers(config.data, numbers or {}),
        vectors=_vectors(config.data, numbers or {}),
        texts=[column.key for column, _ in declared_of(config.data, columns.TextColumn)],
        labels={name: label.after for name, label in config.data.further_labels.items()},
        position_corrected=settings.position_corrected,
    )
    arguments = settings.model_dump(exclude=set(settings.elsewhere))
    if isinstance(settings, FusedConfig):
        arguments["members"] = {
            name: build_model(_of_member(config, member), tokenizer, kept=kept, numbers=numbers)
            for name, member in settings.members.items()
        }
    if parts := {name: _part_builder(name, part) for name, part in settings.parts.chosen()}:
        arguments["parts"] = parts
    try:
        return located("rankers", settings.built_of).build(given, **arguments)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def _numbers(data: DataConfig, learned: Learned) -> list[NumberColumn]:
    """The log's own numbers by the names that `Inputs` has them under."""
    return [
        NumberColumn(c.family, c.key, number.transform != "none", number.bins, **_known(NumberColumn, learned, c))  # type: ignore[arg-type]
        for c, number in declared_of(data, columns.NumberColumn)
    ]


def _vectors(data: DataConfig, learned: Learned) -> list[VectorColumn]:
    """Its own vectors, alike."""
    return [
        VectorColumn(c.family, c.key, vector.width, history=vector.history, **_known(VectorColumn, learned, c))  # type: ignore[arg-type]
        for c, vector in declared_of(data, columns.VectorColumn)
    ]


def _known(what: type[NumberColumn | VectorColumn], learned: Learned, column: Column) -> dict[str, Any]:
    return {name: value for name, value in learned.get(column.name, {}).items() if name in what._fields}


def _of_member(config: RunConfig, member: Member) -> RunConfig:
    if unknown := [name for name in member.features if name not in config.features]:
        raise ConfigError(f"model.members: there is no feature {unknown[0]!r}")
    features = {name: config.features[name] for name in member.features}
    return config.model_copy(update={"model": member.model, "features": features})


def feature_widths(tables: dict[str, TableConfig], features: dict[str, FeatureConfig]) -> Widths:
    """Widths of the features by the names that `Inputs` has them under.

    Raises:
        ConfigError: an event's feature has none of its name and width to be compared with.
    """
    widths = Widths({}, {}, {"history": {}, "peer": {}})
    for name, feature in features.items():
        family, _, stem = name.partition("_")
        dim = tables[feature.table].dim
        if family in widths.sequences and not feature.pooling:
            widths.sequences[family][stem] = dim
        elif family == "candidate":
            widths.candidate[stem] = dim
        else:
            widths.request[name] = dim
    for family, compared in widths.sequences.items():
        for name, dim in compared.items():
            _check_compared(f"{family}_{name}", name, dim, widths)
    return widths


def _part_builder(name: str, section: PartSection) -> Callable[[Given], Part | None]:
    def build(given: Given) -> Part | None:
        try:
            part: Part | None = located("parts", section.built_of).build(given, **section.model_dump())
        except ValueError as error:
            raise ConfigError(f"model.parts.{name}.{error}" if ": " in str(error) else f"model.parts.{name}: {error}") from error
        return part

    return build


def located(folder: str, built_of: str) -> Any:
    """The class of `modules/` that a section is `built_of`, `module:class` below a folder."""
    file, _, name = built_of.partition(":")
    return getattr(import_module(f"prectr_torchrec.modules.{folder}.{file}"), name)


def _check_compared(feature: str, name: str, dim: int, widths: Widths) -> None:
    """That an event's feature has one of its name and width to be compared with: the candidate's, or its request's."""
    for target, targets in ((f"candidate_{name}", widths.candidate), (name, widths.request)):
        if name in targets:
            if targets[name] != dim:
                raise ConfigError(f"features.{feature} and features.{target} need tables of the same dim")
            return
    raise ConfigError(f"features.{feature}: add features.candidate_{name} (or {name}) to compare it with")
