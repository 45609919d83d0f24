"""That the counters equal the samples' is in `test_prepare.py`."""

from __future__ import annotations

import pytest

from prectr_torchrec.serving.counters import PreferenceStatistics


def test_each_event_counts_where_it_belongs() -> None:
    statistics = PreferenceStatistics(2, [1.0, 0.5])
    statistics.add(user_id=1, query_id=10, group_id=7, item_id=100, level=2, position=2, click=1)
    statistics.add(user_id=2, query_id=11, group_id=7, item_id=100, level=0, position=9, click=0)
    statistics.add(user_id=2, query_id=12, group_id=0, item_id=101, level=1, position=0, click=1)
    mine = {name: counts.tolist() for name, counts in statistics.look_up(user_id=1, query_id=10, group_id=7).items()}
    assert mine["user_shown"] == mine["user_clicked"] == [0, 0, 1] and mine["user_examined"] == [0, 0, 0.5]
    assert mine["query_shown"] == mine["query_examined"] == [0, 0, 0]
    assert mine["group_shown"] == [1, 0, 0] and mine["group_clicked"] == [0, 0, 0] and mine["group_examined"] == [0.5, 0, 0]
    other = statistics.look_up(user_id=1, query_id=12, group_id=0)
    assert other["query_shown"].tolist() == other["query_examined"].tolist() == [0, 1, 0]
    assert other["group_shown"].tolist() == [0, 0, 0]
    items = {name: counts.tolist() for name, counts in statistics.item([101, 100, 5]).items()}
    assert items == {"candidate_shown": [1, 2, 0], "candidate_clicked": [1, 1, 0], "candidate_examined": [1, 1, 0]}


def test_looking_up_counts_nothing_and_nobody_known_has_zeros() -> None:
    statistics = PreferenceStatistics(3, [1.0])
    found = statistics.look_up(1, 2, 3) | statistics.item([4])
    assert all(counts.sum() == 0 for counts in found.values())
    assert all(not len(value) for name, value in statistics.state_dict().items() if name.endswith(".counts"))
    assert statistics.item([])["candidate_shown"].shape == (0,)


def test_labels_count_when_they_are_known_and_where_their_impression_does() -> None:
    statistics = PreferenceStatistics(2, [1.0, 0.5], ["cart", "order"])
    event = {"user_id": 1, "query_id": 10, "group_id": 7, "item_id": 100, "level": 2}
    statistics.add(**event, position=2, click=0)
    before = statistics.look_up(2, 10, 7) | statistics.item([100])
    for label in ("click", "cart", "cart"):
        statistics.add_label(label, **event)
    after = statistics.look_up(2, 10, 7) | statistics.item([100])
    moved = {name: after[name].tolist() for name in after if after[name].tolist() != before[name].tolist()}
    assert moved == {
        **{f"{who}_clicked": [0, 0, 1] for who in ("query", "group")},
        **{f"{who}_carts": [0, 0, 2] for who in ("query", "group")},
        **{"candidate_clicked": [1], "candidate_carts": [2]},
    }
    assert statistics.look_up(1, 10, 7)["user_carts"].tolist() == [0, 0, 2]
    with pytest.raises(ValueError, match=r"'orders' is no label \(did you mean 'order'\?\)"):
        statistics.add_label("orders", **event)
    with pytest.raises(ValueError, match=r"counters with labels \['cart', 'order'\], here it is \[\]"):
        PreferenceStatistics(2, [1.0, 0.5]).load_state_dict(statistics.state_dict())


@pytest.mark.parametrize("event", [{"level": 4}, {"level": -1}, {"position": -1}, {"click": 2}])
def test_an_event_that_cannot_be_is_refused(event: dict[str, int]) -> None:
    good = {"user_id": 1, "query_id": 1, "group_id": 1, "item_id": 1, "level": 1, "position": 1, "click": 1}
    with pytest.raises(ValueError, match=r"expected a level in 0..3, a position from 0 and a click of 0 or 1"):
        PreferenceStatistics(3, [1.0]).add(**good | event)


def test_counters_of_other_settings_are_refused() -> None:
    state = PreferenceStatistics(3, [1.0]).state_dict()
    with pytest.raises(ValueError, match=r"counters with num_levels 3, here it is 4; count the events anew"):
        PreferenceStatistics(4, [1.0]).load_state_dict(state)
    with pytest.raises(ValueError, match=r"counters with examination \[1.0\], here it is \[1.0, 0.5\]"):
        PreferenceStatistics(3, [1.0, 0.5]).load_state_dict(state)
