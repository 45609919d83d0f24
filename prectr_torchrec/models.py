"""A configuration becomes a ranker, wired by the features that it names; in training as in serving."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path

from prectr_torchrec.config.kinds import PRECTRConfig
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.tokenizer import load_tokenizer, special_ids
from prectr_torchrec.data.tokens import vocabulary_size
from prectr_torchrec.modules import (
    PRECTR,
    Counters,
    Examination,
    Given,
    Interest,
    KnownGrade,
    LookedUpFeatures,
    Part,
    PastCounts,
    Personal,
    RankingModel,
    Taste,
    TextFeatures,
    TextRelevance,
    TitleFeatures,
    TitleTaste,
    Widths,
)
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text.build import build_match, build_relevance


def build_model(config: RunConfig, tokenizer: Path, *, kept: bool = False) -> RankingModel:
    """The ranker.

    Args:
        config: the run.
        tokenizer: tokenizer folder of the prepared data or of the run.
        kept: as of `text.build.build_relevance`.

    Raises:
        ConfigError: features and model do not fit together.
    """
    settings, levels = config.model, config.data.levels
    widths = feature_widths(config)
    if isinstance(settings, PRECTRConfig):
        return _build_prectr(config, settings, widths, tokenizer, kept=kept)
    file, _, name = settings.built_of.partition(":")
    kind: type[RankingModel] = getattr(import_module(f"prectr_torchrec.modules.rankers.{file}"), name)
    match = partial(build_match, tokenizer, config.text.stemmer)
    given = Given(widths, levels.grades, (levels.grade_min, levels.grade_max), match)
    try:
        return kind.build(given, **settings.model_dump(exclude={"kind"}))
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def _build_prectr(config: RunConfig, model: PRECTRConfig, widths: Widths, tokenizer: Path, *, kept: bool) -> PRECTR:
    _check_events(model, widths)
    relevance = build_relevance(config, tokenizer, kept=kept)
    return PRECTR(
        relevance,
        _parts(config, model, widths, relevance, tokenizer),
        num_levels=config.data.levels.count,
        click_tower=model.click_tower,
        cross_layers=model.cross_layers,
        dropout=model.dropout,
        mixture=model.mixture,
        position=Examination(model.position_count) if model.position_bias else None,
        known_grade=model.known_grade,
        swap_share=model.swap_share,
    )


def feature_widths(config: RunConfig) -> Widths:
    """Widths of the features by the names that `Inputs` has them under."""
    widths = Widths({}, {}, {"history": {}, "peer": {}})
    for name, feature in config.features.items():
        family, _, stem = name.partition("_")
        dim = config.tables[feature.table].dim
        if family in widths.sequences:
            widths.sequences[family][stem] = dim
        elif family == "candidate":
            widths.candidate[stem] = dim
        else:
            widths.request[name] = dim
    return widths


def _parts(config: RunConfig, model: PRECTRConfig, widths: Widths, relevance: TextRelevance, tokenizer: Path) -> dict[str, Part]:
    """The parts in the order in which the click tower reads them; made in the order in which their weights are drawn."""
    levels = config.data.levels
    made: dict[str, Part] = {"features": LookedUpFeatures(widths), "counts": PastCounts()}
    history = {name: widths.compared(name) for name in widths.sequences["history"]}
    if model.interest and history:
        made["interest"] = Interest(history, levels.count, dim=model.attention_dim, num_heads=model.attention_heads)
    if relevance.title_dim:
        made["title"] = TitleFeatures(relevance.title_dim)
    if model.statistics:
        made["statistics"] = Counters(model.statistics, levels.count, position_corrected=model.position_corrected)
    if model.known_grade != "none":
        made["grade"] = KnownGrade(levels.grades, (levels.grade_min, levels.grade_max))
    relevance_dim = relevance.tower.head.in_features
    made["text"] = TextFeatures(relevance_dim, relevance.match_dim)
    preference = model.preference
    if preference.own or preference.peers:
        made["personal"] = Personal(
            widths,
            levels.count,
            own=preference.own,
            peers=preference.peers,
            gate=preference.gate,
            incentive="shared" if preference.incentive == "per_level" and not model.mixture else preference.incentive,
            relevance_dim=relevance_dim,
            dim=preference.dim,
            num_heads=preference.heads,
        )
    if preference.taste:
        vocabulary = load_tokenizer(tokenizer)
        taste = Taste(
            vocabulary_size(vocabulary.get_vocab()),
            dim=preference.taste,
            num_levels=levels.count,
            special_tokens=special_ids(vocabulary),
        )
        made["taste"] = TitleTaste(taste)
    order = ("features", "interest", "counts", "statistics", "grade", "text", "taste", "personal", "title")
    return {name: made[name] for name in order if name in made}


def _check_events(model: PRECTRConfig, widths: Widths) -> None:
    history, peers = widths.sequences["history"], widths.sequences["peer"]
    for family, features in widths.sequences.items():
        for name, dim in features.items():
            _check_compared(f"{family}_{name}", name, dim, widths)
    if (model.interest or model.preference.own) and not history:
        key = "interest" if model.interest else "preference.own"
        raise ConfigError(f"model.{key}: true needs at least one history_* feature, such as history_item_id")
    of_items = {name for name in history if name in widths.candidate}
    if model.preference.own and peers and not of_items:
        raise ConfigError(
            "model.preference.own: beside peer_* features it needs a history_* feature of items, such as history_item_id"
        )
    if model.preference.peers and not peers:
        raise ConfigError("model.preference.peers: true needs at least one peer_* feature, such as peer_item_id")
    if model.preference.incentive != "none" and not (model.preference.own or model.preference.peers):
        raise ConfigError("model.preference.incentive: needs model.preference.own or peers, the preference it compares with")
    if model.preference.peers and of_items and set(peers) != of_items:
        missing = ", ".join(f"candidate_{name}" for name in sorted(of_items ^ set(peers)))
        raise ConfigError(
            f"model.preference.peers: peer_* and history_* features must be compared with the same candidate_* ones; {missing} "
            "has one of them only"
        )


def _check_compared(feature: str, name: str, dim: int, widths: Widths) -> None:
    """That an event's feature has one of its name and width to be compared with: the candidate's, or its request's."""
    for target, of in ((f"candidate_{name}", widths.candidate), (name, widths.request)):
        if name in of:
            if of[name] != dim:
                raise ConfigError(f"features.{feature} and features.{target} need tables of the same dim")
            return
    raise ConfigError(f"features.{feature}: add features.candidate_{name} (or {name}) to compare it with")
