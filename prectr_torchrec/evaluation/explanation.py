"""Why the candidates of one request score as they do, part by part; of a run as of an exported ranker."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from prectr_torchrec.config.columns import NumberColumn
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.score import Worth, multiplied, plain_score
from prectr_torchrec.data.columns import Family, declared_of
from prectr_torchrec.data.levels import grade_levels
from prectr_torchrec.evaluation.label_columns import each_worth, expected_worth
from prectr_torchrec.evaluation.part_columns import part_values
from prectr_torchrec.modules import Attention, Inputs, Predictions, RankingModel, ReportedPart, WordTaste

Row = dict[str, Any]

EVENTS = 10
"""Past events told of each list."""
WORDS = 6
"""Words told of what a user likes, and of what not."""
PAST = {"history": "own_history", "peer": "peers"}
"""Sequence -> where its events stand in what is taken apart."""


class Observed(NamedTuple):
    """A batch of one request, scored with all that its ranker can say of it."""

    inputs: Inputs
    predictions: Predictions
    reported: Mapping[str, ReportedPart]
    attention: dict[str, Attention]
    taste: WordTaste | None = None


def observe(model: RankingModel, inputs: Inputs) -> Observed:
    """Scores the inputs of one request, and asks for its attention and its reported parts."""
    reporting = copy(model)  # the same weights; threads that share the model keep their own switch
    reporting.reports_parts = True
    predictions = reporting(inputs)
    reported = {name: part for name, part in model.reported.items() if part.where != "predictions"}
    return Observed(inputs, predictions, reported, model.attention(inputs), model.word_taste(inputs))


def take_apart(data: DataConfig, sample: Row, observed: Observed, score: Mapping[str, Worth], words: Mapping[int, str]) -> Row:
    """What was observed, as plain values.

    Args:
        data: of the run.
        sample: the request, a row of samples.
        observed: of this request alone.
        score: what labels are worth.
        words: the texts' tokens by their ids.

    Returns:
        `candidates`, best first, with their declared `numbers`; `numbers` of the request; of a ranker with labels beside the
        click, or whose score is no click probability, what they are worth, `score`, and of each candidate its score and what
        that is made of, `score_parts`; `parts`, of
        what the ranker reports of them its `meaning`, and whether it is `signed`; `own_history` and `peers`, each with its number
        of `events`, the attention on nothing that fits (`nothing_fits`) and the `strongest` events; `taste`, words that the user
        `likes` and `dislikes` in titles, with what they are worth in logits. What the ranker lacks is not there.
    """
    columns = {column: part for name, part in observed.reported.items() for column in part.names or (name,)}
    found: Row = {
        "numbers": {key: sample[name] for name, key in _numbers(data, "request").items()},
        "candidates": _candidates(data, sample, observed),
        "parts": {name: {"meaning": part.meaning, "signed": part.signed} for name, part in columns.items()},
    }
    weigh(found, score)
    if observed.taste is not None:
        found["taste"] = _taste(observed.taste, words)
    for sequence, name in PAST.items():
        if attention := {n: a for n, a in observed.attention.items() if a.sequence == sequence}:
            found[name] = _events(data, sample, sequence, attention)
    return found


def words_of(vocabulary: Mapping[str, int]) -> dict[int, str]:
    """The words of a vocabulary by their ids."""
    return {token: word for word, token in vocabulary.items()}


def weigh(found: Row, score: Mapping[str, Worth]) -> None:
    """Orders the candidates of what was taken apart by what they are expected to be worth, and says what that is made of."""
    rows = found["candidates"]
    probabilities = {label: np.array([row[f"{label}_probability"] for row in rows], dtype=np.float32) for label in score}
    worths = each_worth(score, {column: [row["numbers"][column] for row in rows] for column in multiplied(score).values()})
    scores = expected_worth(probabilities, worths)
    if multiplied(score) or any("score" in row for row in rows):
        found["score"] = plain_score(score)
        parts = {label: np.broadcast_to(worth, len(rows)).tolist() for label, worth in worths.items()}
        for number, row in enumerate(rows):
            row["score"] = scores.tolist()[number]
            row["score_parts"] = {label: worth[number] * row[f"{label}_probability"] for label, worth in parts.items()}
    found["candidates"] = [rows[i] for i in np.argsort(-scores, kind="stable")]


def rows_of(found: Row) -> list[Row]:
    """The candidates and events of what was taken apart: all that bears ids."""
    return [*found["candidates"], *(event for part in PAST.values() if part in found for event in found[part]["strongest"])]


def _numbers(data: DataConfig, family: Family) -> dict[str, str]:
    """Sample columns of the log's own numbers, and what a request calls them."""
    return {column.name: column.key for column, _ in declared_of(data, NumberColumn) if column.family == family}


def _candidates(data: DataConfig, sample: Row, observed: Observed) -> list[Row]:
    candidate, predictions = observed.inputs.candidate, observed.predictions
    columns = {
        "item_id": sample["candidate_item_id"],
        "title": sample["candidate_title"],
        "grade": sample["candidate_relevance"],
        "level": [level or None for level in candidate["level"].tolist()],
    }
    if bool(candidate["predicted"].any()):
        columns["predicted_level"] = candidate["predicted"].tolist()
    if numbers := _numbers(data, "candidate"):
        values = zip(*(sample[name] for name in numbers), strict=True)
        columns["numbers"] = [dict(zip(numbers.values(), of_one, strict=True)) for of_one in values]
    columns |= {f"{label}_probability": p.logit.sigmoid().tolist() for label, p in predictions.ranking.items()}
    if len(predictions.ranking) > 1:
        columns |= {name: [None] * len(columns["item_id"]) for name in ("score", "score_parts")}
    columns |= {name: values.tolist() for name, values in part_values(observed.reported, predictions.parts).items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _taste(taste: WordTaste, words: Mapping[int, str]) -> Row:
    """The strongest words of a request's user, each way; none of whom nothing is known."""
    worth, order = taste.worth[0], taste.worth[0].argsort(descending=True)

    def told(places: Tensor) -> dict[str, float]:
        tokens, values = taste.tokens[places].tolist(), worth[places].tolist()
        return {words[token]: value for token, value in zip(tokens, values, strict=True)}

    likes, dislikes = told(order[:WORDS]), told(order.flip(0)[:WORDS])
    return {
        "likes": {word: value for word, value in likes.items() if value > 0},
        "dislikes": {word: value for word, value in dislikes.items() if value < 0},
    }


def _events(data: DataConfig, sample: Row, family: str, attention: dict[str, Attention]) -> Row:
    weights = {name: found.weights[0].mean((0, 1)).cpu() for name, found in attention.items()}
    limit = data.history_length if family == "history" else data.peer_length
    fields = ("item_id", "relevance", "click", "position", "age", "query_id")
    events = {name: sample[f"{family}_{name}"][-limit:] if limit else [] for name in fields}  # the reader keeps the latest
    titles: dict[int, str] = {}  # samples have none for the events of peers: of these only items seen elsewhere have one
    for prefix in ("candidate", "history"):
        titles.update(zip(sample[f"{prefix}_item_id"], sample[f"{prefix}_title"], strict=True))
    levels = grade_levels(np.array(events["relevance"], dtype=np.float32), data.levels.boundaries).tolist()
    rows = [
        {
            "item_id": item,
            "title": titles.get(item),
            "level": levels[j] or None,
            "feedback": "clicked" if events["click"][j] else "skipped",
            "position": events["position"][j] or None,
            "age": events["age"][j],
            "query_id": events["query_id"][j],
            **{name: float(weight[j]) for name, weight in weights.items()},
        }
        for j, item in enumerate(events["item_id"])
    ]
    rows.sort(key=lambda row: -sum(row[name] for name in weights))
    nothing = {name: float(found.nothing[0].mean()) for name, found in attention.items() if found.nothing is not None}
    return {"events": len(rows), "nothing_fits": nothing, "strongest": rows[:EVENTS]}
