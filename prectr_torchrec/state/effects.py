r"""What a user's events before a moment say of this user: one Newton step from the prior, as running sums.

An event has the vector :math:`x`, the click :math:`y` and, from everything but the user, the logit :math:`z` at the reference
position and the examination :math:`\epsilon` of its own, so that a click has the probability :math:`e = \epsilon \sigma(z)`. What
is known of the logit by a click that may not have been looked at is less by :math:`w = (1 - \sigma(z)) / (1 - e)`, the derivative
of the log likelihood being :math:`(y - e) w`. Over the user's events *strictly before* a moment, :math:`S = \sum (y - e) w x` and
:math:`I = \sum e (1 - e) w^2 x x^T`, the expected information, give :math:`b = (I + \mathrm{diag}(1 / \sigma^2))^{-1} S`, and
:math:`b \cdot x` is added to the logit. Without a past, :math:`b = 0`. An impression counts as not clicked from when it was
shown, and its click from when that is known.

A row of sums is :math:`S` and then the upper triangle of :math:`I`, row by row: D + D (D + 1) / 2 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.data.prepare.events import EventOrder

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BLOCK = 2**16


class EffectEvents(NamedTuple):
    """n events sorted by user and time, such as memory maps; they are read a block at a time."""

    user: Ints
    """(n,)."""
    time: Ints
    """(n,) from which on it is known."""
    x: Floats
    """(n, D) w x."""
    surplus: Floats
    """(n,) what is added to y - e: of `as_known`."""
    information: Floats
    """(n,) e (1 - e), or 0 of a click."""

    @classmethod
    def sort(cls, user: Ints, time: Ints, x: Floats, surplus: Floats, information: Floats) -> EffectEvents:
        """Of arrays in any order."""
        order = np.lexsort((time, user))
        return cls(user[order], time[order], x[order], surplus[order], information[order])


class Examined(NamedTuple):
    """A click where the position may not have been looked at."""

    probability: Floats
    """(n,) e."""
    weight: Floats
    """(n,) w."""


def examined(logit: Floats, examination: Floats) -> Examined:
    """Of n events: by their logits at the reference position and the examination of their own.

    Example::

        seen, missed = examined(np.array([0.0, 0.0]), np.array([1.0, 0.5]))._asdict().values()
        assert seen.tolist() == [0.5, 0.25] and np.allclose(missed, [1.0, 0.5 / 0.75])
    """
    with np.errstate(divide="ignore"):
        unseen = np.log1p(-np.minimum(examination, 1.0))  # w = sigmoid(-z - log(1 - epsilon))
    return Examined(examination * np.exp(-np.logaddexp(0, -logit)), np.exp(-np.logaddexp(0, logit + unseen)))


class KnownEvents(NamedTuple):
    """Impressions as they become known: each as one that nobody clicked, and the clicks."""

    impression: Ints
    """(m,) which of the n impressions each event is of."""
    time: Ints
    """(m,)."""
    surplus: Floats
    """(m,)."""
    information: Floats
    """(m,)."""


def as_known(time: Ints, click: NDArray[Any], click_known: Ints | None, probability: Floats) -> KnownEvents:
    """What each moment knows of impressions, so that a sum over the events before it does.

    Args:
        time: (n,) when they were shown.
        click: (n,) 1: clicked; anything else: not, or not known to be.
        click_known: (n,) when each click is known, 0 where there is none, also of those whose label does not say so yet; None:
            with its impression.
        probability: (n,) e.

    Example::

        clicks, never = np.array([1, 0]), 0
        events = as_known(np.array([10, 20]), clicks, np.array([15, never]), np.array([0.5, 0.25]))
        assert events.impression.tolist() == [0, 1, 0] and events.time.tolist() == [10, 20, 15]
        assert events.surplus.tolist() == [-0.5, -0.25, 1.0] and events.information.tolist() == [0.25, 0.1875, 0.0]
    """
    clicks = np.flatnonzero(click == 1 if click_known is None else (click == 1) | (click_known != 0))
    return KnownEvents(
        np.concatenate([np.arange(len(time)), clicks]),
        np.concatenate([time, (time if click_known is None else click_known)[clicks]]),
        np.concatenate([-probability, np.ones(len(clicks))]),
        np.concatenate([probability * (1 - probability), np.zeros(len(clicks))]),
    )


class EffectPosterior(NamedTuple):
    """Of m users as of moments."""

    mean: Floats
    """(m, D) b."""
    sd: Floats
    """(m, D) the standard deviations of its elements."""


def event_sums(x: Floats, surplus: Floats, information: Floats) -> Floats:
    """(n, D + D (D + 1) / 2) what each event adds to the sums of its user.

    Example::

        sums = event_sums(np.array([[1.0, 2.0]]), np.array([0.5]), np.array([0.25]))
        assert sums.tolist() == [[0.5, 1.0, 0.25, 0.5, 1.0]]
    """
    rows, columns = np.triu_indices(x.shape[1])
    return np.concatenate([surplus[:, None] * x, information[:, None] * x[:, rows] * x[:, columns]], axis=1)


def posterior(sums: Floats, variance: Floats) -> EffectPosterior:
    """The posterior of sums.

    Args:
        sums: (m, D + D (D + 1) / 2).
        variance: (D,) of the prior.
    """
    D = len(variance)
    rows, columns = np.triu_indices(D)
    precision = np.zeros((len(sums), D, D))
    precision[:, rows, columns] = precision[:, columns, rows] = sums[:, D:]
    covariance = np.linalg.inv(precision + np.diag(1 / variance))
    mean = np.einsum("mij,mj->mi", covariance, sums[:, :D])
    return EffectPosterior(mean, np.sqrt(np.einsum("mii->mi", covariance)))


def sums_before(events: EffectEvents, user: Ints, time: Ints, *, block: int = BLOCK) -> Iterator[tuple[Ints, Floats]]:
    """The sums of users over their events strictly before moments, in one pass over the events.

    Args:
        events: sorted by user and time.
        user: (m,) in any order.
        time: (m,).
        block: events that are in memory at a time.

    Yields:
        Which of the m, (k,), and their sums, (k, D + D (D + 1) / 2); each of the m once.
    """
    D = events.x.shape[1]
    start, stop = EventOrder((events.user,), {"timestamp": events.time}).before(time, user)
    order = np.argsort(stop, kind="stable")
    ends = stop[order]
    without = order[start[order] == ends]
    yield without, np.zeros((len(without), D + D * (D + 1) // 2))
    order = order[start[order] < ends]
    ends = stop[order]
    carried = np.zeros(D + D * (D + 1) // 2)  # of the user whose events go on beyond a block
    for first in range(0, len(events.user), block):
        last = min(first + block, len(events.user))
        of_block = slice(first, last)
        totals = np.zeros((last - first + 1, len(carried)))
        added = event_sums(events.x[of_block], events.surplus[of_block], events.information[of_block])
        np.cumsum(added, axis=0, out=totals[1:])
        asked = order[np.searchsorted(ends, first, side="right") : np.searchsorted(ends, last, side="right")]
        begun = start[asked] < first
        before = totals[np.maximum(start[asked] - first, 0)]
        yield asked, totals[stop[asked] - first] - before + carried * begun[:, None]
        of_last = int(np.searchsorted(events.user[of_block], events.user[last - 1]))
        goes_on = of_last == 0 and first > 0 and events.user[first - 1] == events.user[last - 1]
        carried = totals[-1] - totals[of_last] + (carried if goes_on else 0)
