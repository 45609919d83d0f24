"""Which columns a ranker reads, and the same inputs with one of them exchanged among requests, or among candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from prectr_torchrec.config.reads import COUNTED
from prectr_torchrec.config.tables import FeatureConfig
from prectr_torchrec.modules import Events, Inputs

_COUNTS = {"user_events": "user counters", "user_query_events": "user counters", "query_events": "query counters"}
_NO_FEATURES = ("position", "of_graded_request")
_GRADE = ("relevance", "level", "predicted")
_TEXTS_OF_REQUESTS = ("query", "history_title")
_SEQUENCES = {"history": "history", "peer": "peers"}


@dataclass
class Column:
    """What is exchanged together, by the names that `Inputs` has it under."""

    request: list[str] = field(default_factory=list)
    candidate: list[str] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def columns_of(inputs: Inputs, features: Mapping[str, FeatureConfig]) -> dict[str, Column]:
    """The columns by name: those of samples, `history` and `peers`, and the counters and the grade as one each.

    Args:
        inputs: of any batch.
        features: of the run.
    """
    found: dict[str, Column] = {}

    def column(name: str) -> Column:
        return found.setdefault(name, Column())

    for name in inputs.request:
        if not name.endswith("_trained"):
            column(_of_request(name, features)).request.append(name)
    for name in inputs.candidate:
        if name not in _NO_FEATURES and not name.endswith("_trained"):
            column(_of_candidate(name, features)).candidate.append(name)
    for name in inputs.sequences:
        column(_SEQUENCES[name]).sequences.append(name)
    for name in inputs.texts:
        column("history" if name == "history_title" else name).texts.append(name)
    return found


def permuted(inputs: Inputs, column: Column, generator: torch.Generator) -> Inputs:
    """The inputs, with a column's values exchanged at random within the batch; no row keeps its own.

    Args:
        inputs: R requests with C candidates.
        column: of `columns_of`.
        generator: on the CPU, whatever device the inputs are on.
    """
    requests, candidates = (_exchange(w, generator) for w in (inputs.request_weight, inputs.candidate_weight))
    request = {name: inputs.request[name][requests] for name in column.request}
    candidate = {name: inputs.candidate[name][candidates] for name in column.candidate}
    sequences = {name: _taken(inputs.sequences[name], requests) for name in column.sequences}
    texts = {
        name: inputs.texts[name]._replace(rows=inputs.texts[name].rows[requests if name in _TEXTS_OF_REQUESTS else candidates])
        for name in column.texts
    }
    return replace(
        inputs,
        request={**inputs.request, **request},
        candidate={**inputs.candidate, **candidate},
        sequences={**inputs.sequences, **sequences},
        texts={**inputs.texts, **texts},
    )


def _taken(events: Events, requests: Tensor) -> Events:
    return Events({name: values[requests] for name, values in events.features.items()}, events.lengths[requests])


def _of_request(name: str, features: Mapping[str, FeatureConfig]) -> str:
    family, _, what = name.partition("_")
    if what in COUNTED:
        return f"{family} counters"
    column = _column(name, features)
    return _SEQUENCES.get(column.partition("_")[0], _COUNTS.get(column, column))


def _of_candidate(name: str, features: Mapping[str, FeatureConfig]) -> str:
    if name in COUNTED:
        return "item counters"
    if name in _GRADE:
        return "grade"
    return _column(f"candidate_{name}", features)


def _column(feature: str, features: Mapping[str, FeatureConfig]) -> str:
    """The sample column of a feature, or of what is no looked-up feature."""
    return (features[feature].column or feature) if feature in features else feature


def _exchange(weight: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) int64: for each real row another real one, along one random circle; padding stays."""
    rows = torch.arange(len(weight))
    real = rows[weight.cpu() > 0]
    circle = real[torch.randperm(len(real), generator=generator)]
    rows[circle] = circle.roll(1)
    return rows.to(weight.device)
