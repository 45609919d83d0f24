"""Why the candidates of one request score as they do, part by part; of a run as of an exported ranker."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.modules import PRECTR, EventAttention, InterestTower, PRECTROutput, TargetAttention

Row = dict[str, Any]

EVENTS = 10
"""Past events told of each list."""
SIDES = ("own", "peers", "prior")
PAST = ("own_history", "peers")
"""Parts of what is taken apart that tell of past events."""


class Observed(NamedTuple):
    output: PRECTROutput
    attention: dict[str, Tensor]
    """`interest`, `intent`, `category`, `peers`, where the run has them -> (L + 1,) weights, the prior's first; means over heads
    and candidates."""


def observe(prectr: PRECTR, run: Callable[[], object]) -> Observed:
    """Notes what happens in the towers while `run` scores the batch of one request; other threads go unnoticed."""
    outputs: list[PRECTROutput] = []
    weights: dict[str, Tensor] = {}
    here = threading.get_ident()

    def note_output(module: nn.Module, inputs: tuple[Any, ...], output: PRECTROutput) -> None:
        if threading.get_ident() == here:
            outputs.append(output)

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if threading.get_ident() == here and name not in weights:  # later passes are those without a past
                target, key, _, lengths = inputs
                assert isinstance(module, TargetAttention)
                weights[name] = module.weights(target, key, lengths)[0].mean((0, 1)).cpu()

        return hook

    with contextlib.ExitStack() as hooks:
        hooks.enter_context(prectr.register_forward_hook(note_output))
        for name, attention in _attentions(prectr).items():
            hooks.enter_context(attention.register_forward_pre_hook(note(name)))
        run()
    return Observed(outputs[0], weights)


def take_apart(config: RunConfig, sample: Row, batch: SearchBatch, observed: Observed) -> Row:
    """What was observed, as plain values.

    Args:
        config: the run's.
        sample: the request, a row of samples.
        batch: of this request alone.
        observed: of this batch.

    Returns:
        `candidates`, best first; `own_history` and `peers`, each with its number of `events`, the attention on the prior
        (`nothing_fits`) and the `strongest` events. What the run lacks is not there.
    """
    own, by_peers = ({n: w for n, w in observed.attention.items() if (n == "peers") == peers} for peers in (False, True))
    return {
        "candidates": _candidates(config, sample, batch, observed.output),
        **({"own_history": _events(config, sample, "history", own)} if own else {}),
        **({"peers": _events(config, sample, "peer", by_peers)} if by_peers else {}),
    }


def rows_of(found: Row) -> list[Row]:
    """The candidates and events of what was taken apart: all that bears ids."""
    return [*found["candidates"], *(event for part in PAST if part in found for event in found[part]["strongest"])]


def _attentions(prectr: PRECTR) -> dict[str, TargetAttention]:
    parts: dict[str, InterestTower | EventAttention | None] = {"interest": prectr.interest}
    if (preference := prectr.personal.preference) is not None:
        parts |= {"intent": preference.intent, "category": preference.category, "peers": preference.peers}
    return {name: part.attention for name, part in parts.items() if part is not None}


def _candidates(config: RunConfig, sample: Row, batch: SearchBatch, output: PRECTROutput) -> list[Row]:
    columns = {
        "item_id": sample["candidate_item_id"],
        "title": sample["candidate_title"],
        "grade": sample["candidate_relevance"],
        "level": [level or None for level in batch.level.tolist()],
    }
    if bool(batch.candidate_predicted.any()):
        columns["predicted_level"] = batch.candidate_predicted.tolist()
    if config.model.mixture:
        columns["level_probabilities"] = output.relevance.log_pi.exp().tolist()
        columns["click_by_level"] = output.level_logits.sigmoid().tolist()
    columns["click_probability"] = output.reference_click.logit.sigmoid().tolist()
    for who, by_level in (output.effect._asdict() if output.effect is not None else {}).items():
        columns[f"effect_{who}"] = output.mean_over_levels(by_level).tolist()
        if config.model.mixture:
            columns[f"effect_{who}_by_level"] = by_level.tolist()
    if output.personal.preference is not None:
        preference = config.model.preference
        there = {"own": preference.own, "peers": preference.peers, "prior": True}
        columns |= {n: w.tolist() for n, w in zip(SIDES, output.personal.preference.weights.T, strict=True) if there[n]}
    if output.personal.taste is not None:
        columns |= {"taste": output.personal.taste.mean.tolist(), "taste_variance": output.personal.taste.variance.tolist()}
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
