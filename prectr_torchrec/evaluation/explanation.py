"""Why the candidates of one request score as they do, part by part; of a run as of an exported ranker."""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.modules import Inputs, Predictions, RankingModel

Row = dict[str, Any]

EVENTS = 10
"""Past events told of each list."""
SIDES = ("own", "peers", "prior")
PAST = ("own_history", "peers")
"""Parts of what is taken apart that tell of past events."""


class Observed(NamedTuple):
    """A batch of one request, scored with all that its ranker can say of it."""

    inputs: Inputs
    predictions: Predictions
    attention: dict[str, Tensor]
    """`interest`, `intent`, `category`, `peers`, where the run has them -> (L + 1,) weights, the prior's first; means over heads
    and candidates."""


def observe(model: RankingModel, inputs: Inputs) -> Observed:
    """Scores the inputs of one request, and asks for its attention and its reported parts."""
    reporting = copy(model)  # the same weights; threads that share the model keep their own switch
    reporting.reports_parts = True
    predictions = reporting(inputs)
    return Observed(inputs, predictions, {name: w[0].mean((0, 1)).cpu() for name, w in model.attention(inputs).items()})


def take_apart(config: RunConfig, sample: Row, observed: Observed) -> Row:
    """What was observed, as plain values.

    Args:
        config: the run's.
        sample: the request, a row of samples.
        observed: of this request alone.

    Returns:
        `candidates`, best first; `own_history` and `peers`, each with its number of `events`, the attention on the prior
        (`nothing_fits`) and the `strongest` events. What the run lacks is not there.
    """
    own, by_peers = ({n: w for n, w in observed.attention.items() if (n == "peers") == peers} for peers in (False, True))
    return {
        "candidates": _candidates(config, sample, observed),
        **({"own_history": _events(config, sample, "history", own)} if own else {}),
        **({"peers": _events(config, sample, "peer", by_peers)} if by_peers else {}),
    }


def rows_of(found: Row) -> list[Row]:
    """The candidates and events of what was taken apart: all that bears ids."""
    return [*found["candidates"], *(event for part in PAST if part in found for event in found[part]["strongest"])]


def _candidates(config: RunConfig, sample: Row, observed: Observed) -> list[Row]:
    candidate, predictions, own = observed.inputs.candidate, observed.predictions, observed.predictions.own
    columns = {
        "item_id": sample["candidate_item_id"],
        "title": sample["candidate_title"],
        "grade": sample["candidate_relevance"],
        "level": [level or None for level in candidate["level"].tolist()],
    }
    if bool(candidate["predicted"].any()):
        columns["predicted_level"] = candidate["predicted"].tolist()
    if config.model.mixture:
        columns["level_probabilities"] = predictions.parts["relevance_levels"].exp().tolist()
        columns["click_by_level"] = own.level_logits.sigmoid().tolist()
    columns["click_probability"] = predictions.ranking["click"].logit.sigmoid().tolist()
    for whose in ("own", "peers"):
        columns[f"effect_{whose}"] = predictions.parts[f"effect_{whose}"].tolist()
        if config.model.mixture:
            columns[f"effect_{whose}_by_level"] = own.effect(whose).tolist()
    if "preference_weights" in predictions.parts:
        personal = config.model.parts.personal
        there = {"own": personal is not None and personal.own, "peers": personal is not None and personal.peers, "prior": True}
        columns |= {n: w.tolist() for n, w in zip(SIDES, predictions.parts["preference_weights"].T, strict=True) if there[n]}
    if "taste" in own.parts:
        columns |= {"taste": own.parts["taste"].mean.tolist(), "taste_variance": own.parts["taste"].variance.tolist()}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return sorted(rows, key=lambda row: -row["click_probability"])


def _events(config: RunConfig, sample: Row, family: str, weights: dict[str, Tensor]) -> Row:
    limit = config.data.history_length if family == "history" else config.data.peer_length
    fields = ("item_id", "relevance", "click", "position", "age", "query_id")
    events = {name: sample[f"{family}_{name}"][-limit:] if limit else [] for name in fields}  # the reader keeps the latest
    titles: dict[int, str] = {}  # samples have none for the events of peers: of these only items seen elsewhere have one
    for prefix in ("candidate", "history"):
        titles.update(zip(sample[f"{prefix}_item_id"], sample[f"{prefix}_title"], strict=True))
    levels = grade_levels(np.array(events["relevance"], dtype=np.float32), config.data.levels.boundaries).tolist()
    rows = [
        {
            "item_id": item,
            "title": titles.get(item),
            "level": levels[j] or None,
            "feedback": "clicked" if events["click"][j] else "skipped",
            "position": events["position"][j] or None,
            "age": events["age"][j],
            "query_id": events["query_id"][j],
            **{name: float(weight[j + 1]) for name, weight in weights.items()},
        }
        for j, item in enumerate(events["item_id"])
    ]
    rows.sort(key=lambda row: -sum(row[name] for name in weights))
    nothing = {name: float(weight[0]) for name, weight in weights.items()}
    return {"events": len(rows), "nothing_fits": nothing, "strongest": rows[:EVENTS]}
