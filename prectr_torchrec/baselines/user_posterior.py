"""Users as of any moment, of events in memory."""

from __future__ import annotations

import numpy as np

from prectr_torchrec.state.effects import EffectEvents, Floats, Ints, posterior, sums_before


class UserPosterior:
    """One Newton step from the prior by the user's impressions strictly before a moment, as of `state/effects.py`.

    Args:
        user, time: (n,) of the impressions, in any order.
        x: (n, D).
        surplus: (n,) y - e.
        information: (n,) e (1 - e).
        variance: (D,) of the prior.
    """

    def __init__(self, user: Ints, time: Ints, x: Floats, surplus: Floats, information: Floats, variance: Floats) -> None:
        self._events = EffectEvents.sort(user, time, x, surplus, information)
        self._variance = variance

    def at(self, user: Ints, time: Ints) -> Floats:
        """(m, D) b of users as of moments, (m,) each; 0 without a past."""
        moments, place = np.unique(np.stack([user, time], axis=1), axis=0, return_inverse=True)
        found = np.zeros((len(moments), len(self._variance)))
        for rows, sums in sums_before(self._events, moments[:, 0], moments[:, 1]):
            found[rows] = posterior(sums, self._variance).mean
        return found[place.reshape(-1)]
