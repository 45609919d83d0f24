"""The sums of `state/effects.py`, each event linear around what its user was inferred to be at its moment."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.data.counted_kinds import sums_width
from prectr_torchrec.data.prepare.events import EventOrder
from prectr_torchrec.state.effects import BLOCK, EffectEvents, Floats, Ints, event_sums, increments, posterior


def filtered_before(
    events: EffectEvents, user: Ints, time: Ints, variance: Floats, *, weights: Floats | None = None, block: int = BLOCK
) -> Iterator[tuple[Ints, Floats]]:
    """The sums of users over their events strictly before moments, in one pass over the events.

    The events of one user and moment know nothing of each other. Users of a block are taken a moment each at a time.

    Args:
        events: sorted by user and time.
        user: (m,) in any order.
        time: (m,).
        variance: (D,) of the prior.
        weights: (impressions,) room for what is kept until clicks are known, such as a memory map; None: is made.
        block: events that are in memory at a time, and those of a moment more.

    Yields:
        Which of the m, (k,), and their sums, (k, D + D (D + 1) / 2); each of the m once.
    """
    W, n = sums_width(len(variance)), len(events.user)
    if weights is None:
        weights = np.zeros(int(events.impression.max(initial=-1)) + 1)
    start, stop = EventOrder((events.user,), {"timestamp": events.time}).before(time, user)
    order = np.argsort(stop, kind="stable")
    order, without = order[start[order] < stop[order]], order[start[order] == stop[order]]
    yield without, np.zeros((len(without), W))
    ends = stop[order]
    first, carried, carried_user = 0, np.zeros(W), None
    while first < n:
        last = min(first + block, n)
        while last < n and events.user[last] == events.user[last - 1] and events.time[last] == events.time[last - 1]:
            last += 1
        part = events.take(slice(first, last))
        goes_on = carried_user is not None and part.user[0] == carried_user
        after, moment = _filter(part, carried if goes_on else np.zeros(W), variance, weights)
        asked = order[np.searchsorted(ends, first, side="right") : np.searchsorted(ends, last, side="right")]
        yield asked, after[moment[stop[asked] - 1 - first]]
        first, carried, carried_user = last, after[-1], part.user[-1]


def _filter(events: EffectEvents, carried: Floats, variance: Floats, weights: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """(moments, W) the sums after each, and (n,) the moment of each event. Moments are whole; `carried` is of the first user."""
    begins = np.r_[True, (np.diff(events.user) != 0) | (np.diff(events.time) != 0)]
    moment, first = np.cumsum(begins) - 1, np.flatnonzero(begins)
    length = np.diff(first, append=len(events.user))
    users = events.user[first]
    begin_user = np.flatnonzero(np.r_[True, np.diff(users) != 0])
    rank = np.arange(len(users)) - np.repeat(begin_user, np.diff(begin_user, append=len(users)))
    after = np.zeros((len(users), len(carried)))
    for at in np.split(by_rank := np.argsort(rank, kind="stable"), np.flatnonzero(np.diff(rank[by_rank])) + 1):
        before = after[at - 1] if rank[at[0]] else np.zeros((len(at), len(carried)))
        if rank[at[0]] == 0 and at[0] == 0:
            before[0] = carried
        after[at] = before + _added(events, first[at], length[at], before, variance, weights)
    return after, moment


def _added(
    events: EffectEvents, first: NDArray[np.intp], length: NDArray[np.intp], before: Floats, variance: Floats, weights: Floats
) -> Floats:
    """(k, W) what the events of k moments, of as many users, add to the sums before."""
    of = np.repeat(np.arange(len(first)), length)
    place = np.arange(len(of)) - np.repeat(np.cumsum(length) - length, length) + first[of]
    x, click, impression = events.x[place], events.click[place], events.impression[place]
    mean = posterior(before, variance).mean
    found = increments(events.logit[place], events.examination[place], np.einsum("nd,nd->n", x, mean[of]))
    weights[impression[~click]] = found.weight[~click]  # those of a click are of when it was shown
    surplus = np.where(click, weights[impression], found.surplus)
    sums = event_sums(x, surplus, np.where(click, 0.0, found.information))
    return np.add.reduceat(sums, np.cumsum(length) - length, axis=0)
