r"""What a user's events before a moment say of this user: a Gaussian posterior, as running sums.

An event has the vector :math:`x`, the click :math:`y` and, from everything but the user, the logit :math:`z` at the reference
position, and the examination :math:`\epsilon` of its own. With the user's coefficients :math:`b` as they are inferred at its
moment, a click has the probability :math:`e = \epsilon \sigma(z + b \cdot x)`. It tells of the logit by
:math:`w = (1 - \sigma(z + b \cdot x)) / (1 - e)`, less than one where the position may not have been looked at: the derivative of
the log likelihood is :math:`(y - e) w`, and its expected information :math:`h = e (1 - e) w^2`. Linear around :math:`b`, over the
user's events *strictly before* a moment,

.. math::
    S = \sum ((y - e) w + h \, b \cdot x) \, x, \quad I = \sum h \, x x^T, \quad
    b = (I + \mathrm{diag}(1 / \sigma^2))^{-1} S,

and :math:`b \cdot x` is added to the logit: an extended Kalman filter of a state that stays (re-derived here; compare Kalman
filtering attention, arXiv 2010.00985). Without a past, :math:`b = 0`. An impression counts as not clicked from when it was shown;
its click adds :math:`w x` from when that is known. Where sums are to be subtracted from one another, such as of a user's own
events from a query's, all are linear around zero: one Newton step from the prior.

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
    """(n, D)."""
    logit: Floats
    """(n,) z."""
    examination: Floats
    """(n,)."""
    impression: Ints
    """(n,) of m: the impression that it is of."""
    click: NDArray[np.bool_]
    """(n,) whether it is a click; else an impression, as one that nobody clicked."""

    @classmethod
    def sort(cls, *columns: NDArray[Any]) -> EffectEvents:
        """Of arrays in any order, an impression before a click of the same moment."""
        events = cls(*columns)
        return events.take(np.lexsort((events.click, events.time, events.user)))

    def take(self, rows: slice | NDArray[np.intp]) -> EffectEvents:
        """Some of them, in memory."""
        columns: list[Any] = [np.asarray(column[rows]) for column in self]
        return EffectEvents(*columns)


class Increments(NamedTuple):
    """What each of n impressions adds."""

    surplus: Floats
    """(n,) to S by its x, as one that nobody clicked."""
    information: Floats
    """(n,) h, to I by x x^T."""
    weight: Floats
    """(n,) w, to S by its x once it is clicked."""


def increments(logit: Floats, examination: Floats, moved: Floats | float = 0.0) -> Increments:
    """Of n impressions.

    Args:
        logit: (n,) z.
        examination: (n,).
        moved: (n,) b . x.

    Example::

        found = increments(np.array([0.0, 0.0]), np.array([1.0, 0.5]))
        assert found.surplus.tolist() == [-0.5, -0.25 * found.weight[1]] and np.allclose(found.weight, [1.0, 0.5 / 0.75])
    """
    logit = logit + moved
    e = examination * np.exp(-np.logaddexp(0, -logit))
    with np.errstate(divide="ignore"):
        unseen = np.log1p(-np.minimum(examination, 1.0))
    w = np.exp(-np.logaddexp(0, logit + unseen))  # sigmoid(-z - log(1 - epsilon))
    h = e * (1 - e) * w**2
    return Increments(h * moved - e * w, h, w)


class KnownEvents(NamedTuple):
    """Impressions as they become known: each as one that nobody clicked, and the clicks."""

    impression: Ints
    """(m,) which of the n impressions each event is of."""
    time: Ints
    """(m,)."""
    click: NDArray[np.bool_]
    """(m,) whether it is a click."""


def as_known(time: Ints, click: NDArray[Any], click_known: Ints | None) -> KnownEvents:
    """What each moment knows of impressions, so that a sum over the events before it does.

    Args:
        time: (n,) when they were shown.
        click: (n,) 1: clicked; anything else: not, or not known to be.
        click_known: (n,) when each click is known, 0 where there is none, also of those whose label does not say so yet; None:
            with its impression.

    Example::

        clicks, never = np.array([1, 0]), 0
        events = as_known(np.array([10, 20]), clicks, np.array([15, never]))
        assert events.impression.tolist() == [0, 1, 0] and events.time.tolist() == [10, 20, 15]
        assert events.click.tolist() == [False, False, True]
    """
    clicks = np.flatnonzero(click == 1 if click_known is None else (click == 1) | (click_known != 0))
    return KnownEvents(
        np.concatenate([np.arange(len(time)), clicks]),
        np.concatenate([time, (time if click_known is None else np.maximum(click_known, time))[clicks]]),
        np.arange(len(time) + len(clicks)) >= len(time),
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


def linear_increments(events: EffectEvents) -> tuple[Floats, Floats]:
    """(n,) surplus and information of events, linear around zero."""
    surplus, information, weight = increments(events.logit, events.examination)
    return np.where(events.click, weight, surplus), np.where(events.click, 0.0, information)


def sums_before(events: EffectEvents, user: Ints, time: Ints, *, block: int = BLOCK) -> Iterator[tuple[Ints, Floats]]:
    """The sums of users over their events strictly before moments, linear around zero, in one pass over the events.

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
        added = event_sums(events.x[of_block], *linear_increments(events.take(of_block)))
        np.cumsum(added, axis=0, out=totals[1:])
        asked = order[np.searchsorted(ends, first, side="right") : np.searchsorted(ends, last, side="right")]
        begun = start[asked] < first
        before = totals[np.maximum(start[asked] - first, 0)]
        yield asked, totals[stop[asked] - first] - before + carried * begun[:, None]
        of_last = int(np.searchsorted(events.user[of_block], events.user[last - 1]))
        goes_on = of_last == 0 and first > 0 and events.user[first - 1] == events.user[last - 1]
        carried = totals[-1] - totals[of_last] + (carried if goes_on else 0)
