"""Users as of any moment, of events in memory."""

from __future__ import annotations

import numpy as np

from prectr_torchrec.state.effect_filter import filtered_before
from prectr_torchrec.state.effects import EffectEvents, Floats, Ints, posterior


class UserPosterior:
    """What the events strictly before a moment say of a user, as of `state/effects.py`.

    Args:
        events: in any order.
        variance: (D,) of the prior.
    """

    def __init__(self, events: EffectEvents, variance: Floats) -> None:
        self._events = EffectEvents.sort(*events)
        self._variance = variance

    def at(self, user: Ints, time: Ints) -> Floats:
        """(m, D) b of users as of moments, (m,) each; 0 without a past."""
        moments, place = np.unique(np.stack([user, time], axis=1), axis=0, return_inverse=True)
        found = np.zeros((len(moments), len(self._variance)))
        for rows, sums in filtered_before(self._events, moments[:, 0], moments[:, 1], self._variance):
            found[rows] = posterior(sums, self._variance).mean
        return found[place.reshape(-1)]
