"""Who searches a simulated shop for what and when, and what its ranker shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prectr_torchrec.data.simulate.catalogue import Catalogue, Floats, Ints

START = 1767225600  # 2026-01-01, UTC
DAYS = 30
CANDIDATES = 14
SHOWN = 6


@dataclass(frozen=True)
class Requests:
    """R requests in the order of time, each with CANDIDATES candidates."""

    timestamp: Ints
    """(R,) seconds."""
    user: Ints
    """(R,)"""
    query: Ints
    """(R,)"""
    candidates: Ints
    """(R, CANDIDATES) columns of the query's pool."""
    position: Ints
    """(R, CANDIDATES) from 1; 0: not shown."""


def draw_requests(rng: np.random.Generator, catalogue: Catalogue, requests: int, users: int) -> Requests:
    """Who searches what when, and what the logging ranker shows: the best six by noisy relevance that pass its filter."""
    activity = rng.lognormal(0, 1.4, users)
    arrival = np.where(rng.random(users) < 0.12, rng.random(users), 0)
    user = rng.choice(users, size=requests, p=activity / activity.sum())
    time = arrival[user] + (1 - arrival[user]) * rng.random(requests)
    order = np.argsort(time, kind="stable")
    user, time = user[order], time[order]
    query = _draw_searches(rng, len(catalogue.queries), time)

    candidates = np.argsort(rng.random((requests, catalogue.pool.shape[1])), axis=1)[:, :CANDIDATES]
    score = catalogue.grades[query[:, None], candidates] + rng.normal(0, 0.45, candidates.shape)
    passed = score >= np.minimum(1.6, score.max(axis=1, keepdims=True))
    at_random = rng.random(requests) < 0.05
    score = np.where(at_random[:, None], rng.random(candidates.shape), score)
    rank = np.argsort(np.argsort(-score, axis=1), axis=1)
    position = np.where((passed | at_random[:, None]) & (rank < SHOWN), rank + 1, 0)
    return Requests(START + (time * DAYS * 86400).astype(np.int64), user, query, candidates, position)


def _draw_searches(rng: np.random.Generator, queries: int, time: Floats) -> Ints:
    """The query of each request: a few heads and a long tail, some of it first searched late, and the last tenth never."""
    known = searched(queries)
    popularity = 1 / (5 + np.arange(known)) ** 0.8
    arrival = np.where(rng.random(known) < 0.2, rng.random(known), 0)
    arrival[0] = 0
    query = rng.choice(known, size=len(time), p=popularity / popularity.sum())
    popularity = popularity * (arrival == 0)
    instead = rng.choice(known, size=len(time), p=popularity / popularity.sum())
    return np.where(arrival[query] > time, instead, query)


def searched(queries: int) -> int:
    """How many of the queries are ever searched: all but the last tenth."""
    return queries - queries // 10
