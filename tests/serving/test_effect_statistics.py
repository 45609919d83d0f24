"""Sums of effects kept event by event; that they equal the samples' is in `training/test_fuse.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prectr_torchrec.serving.effect_statistics import EffectStatistics, ShownEffects, shown_effects
from prectr_torchrec.state.effects import Increments

S, H, W = 0.25, 0.1875, 0.9
NO_CLICK = Increments(np.array([-S]), np.array([H]), np.array([W]))
SHOWN = ShownEffects(np.array([[1.0, -2.0, 0.5]]), {"user": NO_CLICK, "query": NO_CLICK})
EVENT: dict[str, Any] = {"user_id": 1, "query_id": 10, "shown": SHOWN, "place": 0, "click": 1}


def test_own_events_are_the_users_and_no_ones_peers() -> None:
    statistics = EffectStatistics({"user": 3, "query": 2})
    statistics.add(**EVENT)
    statistics.add(**{**EVENT, "user_id": 2, "click": 0})
    other = SHOWN._replace(x=np.array([[1.0, 0.0, 0.0]]))
    statistics.add(**{**EVENT, "user_id": 0, "shown": other})  # nobody known: others to everybody
    mine = statistics.look_up(1, 10)
    s = W - S
    np.testing.assert_allclose(mine["user_sums"], [s, -2 * s, s / 2, H, -2 * H, H / 2, 4 * H, -H, H / 4], atol=1e-7)
    of_two, of_nobody = [-S, 2 * S, H, -2 * H, 4 * H], [s, 0, H, 0, 0]
    np.testing.assert_allclose(mine["query_sums"], np.add(of_two, of_nobody), atol=1e-7)
    of_one = [s, -2 * s, H, -2 * H, 4 * H]
    np.testing.assert_allclose(statistics.look_up(0, 10)["query_sums"], np.sum([of_one, of_two, of_nobody], axis=0), atol=1e-7)
    assert not statistics.look_up(0, 0)["user_sums"].any() and not statistics.look_up(3, 11)["query_sums"].any()


def test_a_click_that_becomes_known_later_ends_in_the_same_sums() -> None:
    late, at_once = EffectStatistics({"user": 3, "query": 2}), EffectStatistics({"user": 3, "query": 2})
    at_once.add(**EVENT)
    late.add(**{**EVENT, "click": 0})
    assert not np.allclose(late.look_up(1, 10)["user_sums"], at_once.look_up(1, 10)["user_sums"])
    late.add_click(1, 10, SHOWN, 0)
    for user in (1, 2):
        expected = at_once.look_up(user, 10)
        for name, sums in late.look_up(user, 10).items():
            np.testing.assert_allclose(sums, expected[name], atol=1e-7)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"click": 2}, "click 2: expected 0 or 1"),
        ({"shown": SHOWN._replace(x=np.zeros((1, 2)))}, "effects of user, query of 2 numbers: expected user of 3"),
        ({"shown": SHOWN._replace(increments={})}, "effects of none of 3 numbers: expected user of 3"),
    ],
)
def test_an_event_that_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EffectStatistics({"user": 3}).add(**{**EVENT, **wrong})


def test_sums_of_other_effects_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sums of effects {'user': 3}, here they are {'user': 2}; add the events anew"):
        EffectStatistics({"user": 2}).load_state_dict(EffectStatistics({"user": 3}).state_dict())


def test_a_ranker_without_effects_is_refused(ranker: Any) -> None:
    with pytest.raises(ValueError, match="a ranker of kind 'prectr' has no mixed effects"):
        shown_effects(ranker, {"query": "red lamp", "candidates": [{"item_id": 7}]})
