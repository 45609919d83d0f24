"""A configuration becomes the towers, wired by the features that it names; in training as in serving."""

from __future__ import annotations

from pathlib import Path

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.tokenizer import load_tokenizer, special_ids
from prectr_torchrec.data.tokens import vocabulary_size
from prectr_torchrec.modules import PRECTR, PreferenceParts
from prectr_torchrec.system.errors import ConfigError
from prectr_torchrec.text.build import build_relevance


def build_prectr(config: RunConfig, tokenizer: Path, *, kept: bool = False) -> PRECTR:
    """The towers.

    Args:
        config: the run.
        tokenizer: tokenizer folder of the prepared data or of the run.
        kept: as of `text.build.build_relevance`.

    Raises:
        ConfigError: features and model do not fit together.
    """
    model = config.model
    dims = {name: config.tables[feature.table].dim for name, feature in config.features.items()}
    candidate = {n: d for n, d in dims.items() if n.startswith("candidate_")}
    history = {n: _target(n, dims) for n in dims if n.startswith("history_")}
    request = {n: d for n, d in dims.items() if n not in candidate and not n.startswith(("history_", "peer_"))}
    peers = {n: _target(n, dims) for n in dims if n.startswith("peer_")}
    _check_events(config, history, peers)
    vocabulary = load_tokenizer(tokenizer)
    return PRECTR(
        num_levels=config.data.levels.count,
        request_dims=request,
        candidate_dims=candidate,
        history=history,
        peers=peers,
        preference=PreferenceParts(
            **model.preference.model_dump(),
            vocab_size=vocabulary_size(vocabulary.get_vocab()),
            special_tokens=special_ids(vocabulary),
        ),
        relevance=build_relevance(config, tokenizer, kept=kept),
        statistics=list(model.statistics),
        position_corrected=model.position_corrected,
        mixture=model.mixture,
        interest=model.interest,
        attention_dim=model.attention_dim,
        attention_heads=model.attention_heads,
        click_tower=model.click_tower,
        cross_layers=model.cross_layers,
        num_positions=model.position_count if model.position_bias else None,
        known_grade=model.known_grade,
        grade_range=(config.data.levels.grade_min, config.data.levels.grade_max),
        level_grades=config.data.levels.grades,
        dropout=model.dropout,
    )


def _check_events(config: RunConfig, history: dict[str, str], peers: dict[str, str]) -> None:
    model = config.model
    if (model.interest or model.preference.own) and not history:
        key = "interest" if model.interest else "preference.own"
        raise ConfigError(f"model.{key}: true needs at least one history_* feature, such as history_item_id")
    if model.preference.own and peers and not any(target.startswith("candidate_") for target in history.values()):
        raise ConfigError(
            "model.preference.own: beside peer_* features it needs a history_* feature of items, such as history_item_id"
        )
    if model.preference.peers and not peers:
        raise ConfigError("model.preference.peers: true needs at least one peer_* feature, such as peer_item_id")
    if model.preference.incentive != "none" and not (model.preference.own or model.preference.peers):
        raise ConfigError("model.preference.incentive: needs model.preference.own or peers, the preference it compares with")
    compared = {target for target in history.values() if target.startswith("candidate_")}
    if model.preference.peers and compared and set(peers.values()) != compared:
        missing = ", ".join(sorted(compared ^ set(peers.values())))
        raise ConfigError(
            f"model.preference.peers: peer_* and history_* features must be compared with the same candidate_* ones; {missing} "
            "has one of them only"
        )


def _target(event_feature: str, dims: dict[str, int]) -> str:
    """What an event's feature is compared with: the candidate's or the request's feature of the same name."""
    stem = event_feature.removeprefix("history_").removeprefix("peer_")
    for target in (f"candidate_{stem}", stem):
        if target in dims:
            if dims[target] != dims[event_feature]:
                raise ConfigError(f"features.{event_feature} and features.{target} need tables of the same dim")
            return target
    raise ConfigError(f"features.{event_feature}: add features.candidate_{stem} (or {stem}) to compare it with")
