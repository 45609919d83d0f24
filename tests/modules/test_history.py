import torch
from past_events import past

from prectr_torchrec.modules import CandidateSlots, EventEmbedding, Events, InterestTower


def interest(lengths: list[int], events: int = 5) -> tuple[InterestTower, dict[str, torch.Tensor | CandidateSlots]]:
    torch.manual_seed(0)
    requests = len(lengths)
    tower = InterestTower(6, 4, dim=8, num_heads=2)
    request = torch.arange(requests).repeat_interleave(2)
    return tower, {
        "candidate": torch.randn(2 * requests, 6),
        "slots": CandidateSlots(request, torch.ones(2 * requests), requests),
        "history": torch.randn(requests, events, 6),
        "lengths": torch.tensor(lengths),
        "level": torch.randint(0, 5, (requests, events)),
        "click": torch.randint(0, 2, (requests, events)),
        "position": torch.randint(0, 30, (requests, events)),
        "age": torch.rand(requests, events) * 1e7,
    }


def run(tower: InterestTower, batch: dict[str, torch.Tensor | CandidateSlots]) -> torch.Tensor:
    happened = {name: batch[name] for name in ("level", "click", "position", "age")}
    history = past(batch["history"], batch["lengths"], **happened)  # type: ignore[arg-type]
    return tower(batch["candidate"], batch["slots"], history)


def event(*, level: int, click: int, position: int, age: float, predicted: list[float] | None = None) -> Events:
    happened = {"level": level, "click": click, "position": position, "age": age}
    if predicted is not None:
        happened["predicted"] = predicted  # type: ignore[assignment]
    return past(
        torch.zeros(1, 1, 0), torch.tensor([1]), **{name: torch.tensor([[value]]) for name, value in happened.items()}
    ).events


def test_requests_do_not_see_each_other() -> None:
    tower, batch = interest([5, 3])
    both = run(tower, batch)
    batch["history"][1] += 1  # type: ignore[index]
    changed = run(tower, batch)
    torch.testing.assert_close(changed[:2], both[:2])
    assert not torch.allclose(changed[2:], both[2:])


def test_a_batch_of_one_with_an_empty_history_is_finite() -> None:
    tower, batch = interest([0])
    out = run(tower, batch)
    out.sum().backward()
    assert out.shape == (2, 8) and out.isfinite().all()
    assert tower.attention.prior_value.grad is not None


def test_events_beyond_the_length_change_nothing() -> None:
    tower, batch = interest([2, 0])
    before = run(tower, batch)
    for name, other in (("history", 9.0), ("level", 1), ("click", 1), ("position", 1), ("age", 1.0)):
        changed = batch[name].clone()  # type: ignore[union-attr]
        changed[0, 2:], changed[1] = other, other
        batch[name] = changed
    torch.testing.assert_close(run(tower, batch), before)


def test_padding_candidates_change_no_other() -> None:
    tower, batch = interest([5, 3])
    whole = run(tower, batch)
    request, weight = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([1.0, 1, 1, 1, 0])
    batch["candidate"] = torch.cat([batch["candidate"], torch.full((1, 6), 9.0)])  # type: ignore[list-item]
    batch["slots"] = CandidateSlots(request, weight, 2)
    torch.testing.assert_close(run(tower, batch)[:4], whole)


def test_a_batch_without_event_slots_gives_what_an_empty_history_gives() -> None:
    tower, batch = interest([0, 0])
    expected = run(tower, batch)
    torch.testing.assert_close(run(tower, interest([0, 0], events=0)[1]), expected)
    none = dict.fromkeys(("level", "click", "position", "age"), torch.zeros(2, 0, dtype=torch.long))
    assert EventEmbedding(4, 3)(Events(none, torch.zeros(2))).shape == (2, 0, 3)


def test_a_click_and_a_skip_of_the_same_item_differ() -> None:
    tower, batch = interest([5])
    batch["click"] = torch.zeros(1, 5, dtype=torch.long)
    skipped = run(tower, batch)
    batch["click"] = torch.ones(1, 5, dtype=torch.long)
    assert not torch.allclose(run(tower, batch), skipped)


def test_event_embedding_tells_level_feedback_position_and_age_apart() -> None:
    torch.manual_seed(0)
    embed = EventEmbedding(4, 3)
    base = {"level": 0, "click": 0, "position": 1, "age": 1.0}
    changes = [{}, {"level": 4}, {"click": 1}, {"position": 2}, {"age": 86_400.0}]
    vectors = torch.cat([embed(event(**{**base, **c}))[0] for c in changes])
    assert len({tuple(row.tolist()) for row in vectors}) == len(changes)


def test_event_embedding_shares_deep_positions_and_old_ages() -> None:
    embed = EventEmbedding(4, 3)
    deep = embed(event(level=0, click=0, position=10, age=2.0**23))
    torch.testing.assert_close(embed(event(level=0, click=0, position=999, age=2.0**40)), deep)


def test_a_predicted_level_is_the_mean_of_the_levels() -> None:
    torch.manual_seed(0)
    embed = EventEmbedding(2, 3)
    for click in (0, 1):
        one, two, soft, none = (
            embed(event(level=level, click=click, position=1, age=1.0, predicted=predicted))
            for level, predicted in ((1, [0.0, 0.0]), (2, [0.0, 0.0]), (0, [0.25, 0.75]), (0, [0.0, 0.0]))
        )
        torch.testing.assert_close(soft, 0.25 * one + 0.75 * two)
        torch.testing.assert_close(none, embed(event(level=0, click=click, position=1, age=1.0)))
        assert not torch.allclose(none, soft)
