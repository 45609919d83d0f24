"""What a user's clicks before a request say of this user: one Newton step from the prior."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class UserPosterior:
    r"""The users as of any moment.

    An impression has the vector :math:`x`, the click :math:`y` and, from everything but the user, the click probability
    :math:`e` at its position. Over the user's impressions *strictly before* a moment, :math:`S = \sum (y - e) x` and
    :math:`I = \sum e (1 - e) x x^T` give :math:`b = (I + \mathrm{diag}(1 / \sigma^2))^{-1} S`, and :math:`b \cdot x` is added
    to the logit. A user without a past has :math:`b = 0`.

    Args:
        user, time: (n,) of the impressions, in any order.
        x: (n, D).
        surplus: (n,) y - e.
        information: (n,) e (1 - e).
        variance: (D,) of the prior.
    """

    def __init__(self, user: Ints, time: Ints, x: Floats, surplus: Floats, information: Floats, variance: Floats) -> None:
        order = np.lexsort((time, user))
        self._users, self._starts = np.unique(user[order], return_index=True)
        self._stops = np.append(self._starts[1:], len(order))
        self._time, self._x = time[order], x[order]
        self._surplus, self._information = surplus[order], information[order]
        self._precision = np.diag(1 / variance)

    def at(self, user: Ints, time: Ints) -> Floats:
        """(m, D) b of users as of moments, (m,) each."""
        moments, place = np.unique(np.stack([user, time], axis=1), axis=0, return_inverse=True)
        found = np.zeros((len(moments), len(self._precision)))
        users, starts = np.unique(moments[:, 0], return_index=True)
        for number, start, stop in zip(users, starts, np.append(starts[1:], len(moments)), strict=True):
            known = int(np.searchsorted(self._users, number))
            if known < len(self._users) and self._users[known] == number:
                found[start:stop] = self._of_user(known, moments[start:stop, 1])
        return found[place.reshape(-1)]

    def _of_user(self, known: int, moments: Ints) -> Floats:
        rows = slice(self._starts[known], self._stops[known])
        x, information = self._x[rows], self._information[rows]
        before = np.searchsorted(self._time[rows], moments, side="left")
        D = x.shape[1]
        S, information_sum = np.zeros((len(x) + 1, D)), np.zeros((len(x) + 1, D, D))
        np.cumsum(self._surplus[rows][:, None] * x, axis=0, out=S[1:])
        np.cumsum(information[:, None, None] * x[:, :, None] * x[:, None, :], axis=0, out=information_sum[1:])
        return np.asarray(np.linalg.solve(information_sum[before] + self._precision, S[before][..., None])[..., 0], np.float64)
