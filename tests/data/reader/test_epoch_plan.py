from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prectr_torchrec.data.reader.epoch_plan import EpochPlan, RowGroup, cut_batches, plan_epoch, turns_after


def make_row_groups(sizes: list[int]) -> list[RowGroup]:
    rng = np.random.default_rng(0)
    return [RowGroup(Path("f"), i, sum(sizes[:i]), rng.integers(0, 6, size).astype(np.int32)) for i, size in enumerate(sizes)]


def make_plan(
    row_groups: list[RowGroup],
    part: int = 0,
    parts: int = 1,
    seed: tuple[int, int] | None = (0, 0),
    earlier: list[list[int]] | None = None,
) -> EpochPlan:
    return plan_epoch(
        row_groups,
        part=part,
        parts=parts,
        max_requests=4,
        max_candidates=12,
        row_groups_per_window=2,
        seed=seed,
        earlier=earlier or [],
    )


def rows_of(plan: EpochPlan) -> list[int]:
    """Rows of the file in the plan's order."""
    found: list[int] = []
    for window in plan.windows:
        rows = np.concatenate([np.arange(s.start, s.stop) + s.row_group.first_row for s in window.segments])
        found += (rows if window.order is None else rows[window.order]).tolist()
    return found


def test_a_batch_closes_before_requests_or_candidates_overflow() -> None:
    counts = np.array([3, 3, 3, 3, 1, 1, 1, 1, 1, 9, 4, 0, 9], dtype=np.int32)
    assert cut_batches(counts, 4, 9).tolist() == [0, 3, 7, 9, 10, 12, 13]


def test_no_rows_make_no_batches() -> None:
    assert make_plan([]).num_batches == 0
    assert make_plan(make_row_groups([0, 0])).num_batches == 0


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("seed", [None, (3, 1)])
def test_readers_share_all_rows_evenly_and_once(parts: int, seed: tuple[int, int] | None) -> None:
    row_groups = make_row_groups([5, 9, 0, 1, 16, 2])
    shares = [rows_of(make_plan(row_groups, part, parts, seed)) for part in range(parts)]
    assert sorted(row for share in shares for row in share) == list(range(33))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_without_a_seed_the_files_order_is_kept() -> None:
    assert rows_of(make_plan(make_row_groups([5, 9, 4]), seed=None)) == list(range(18))


def test_epochs_and_seeds_shuffle_differently_and_repeat() -> None:
    row_groups = make_row_groups([20, 20, 20])
    orders = [rows_of(make_plan(row_groups, seed=seed)) for seed in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_a_shuffled_window_mixes_its_row_groups() -> None:
    first = rows_of(make_plan(make_row_groups([20, 20])))[:10]
    assert any(row < 20 for row in first) and any(row >= 20 for row in first)


@pytest.mark.parametrize("seed", [None, (3, 1)])
def test_what_several_numbers_of_readers_left_is_dealt_out_evenly_and_once(seed: tuple[int, int] | None) -> None:
    row_groups = make_row_groups([5, 9, 0, 1, 16, 2, 30])
    earlier: list[list[int]] = []
    seen: list[int] = []
    for parts, each in ((3, [2, 0, 1]), (2, [1, 3]), (4, [1, 1, 0, 1])):
        for part, batches in enumerate(each):
            plan = make_plan(row_groups, part, parts, seed, earlier)
            seen += rows_of(plan)[: plan.batch_starts[batches]]
        earlier.append(each)
    shares = [rows_of(make_plan(row_groups, part, 3, seed, earlier)) for part in range(3)]
    assert len(seen) > 20 and sorted([*seen, *(row for share in shares for row in share)]) == list(range(63))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("position", range(9))
def test_parts_go_on_from_any_position_as_if_never_stopped(position: int) -> None:
    sizes = [3, 1, 4]
    turns = [0, 1, 2, 0, 2, 0, 2, 2]  # asked in turn, dry ones skipped
    after = turns_after(position, sizes)
    assert {part: done for part, done in after} == {part: turns[:position].count(part) for part in range(3)}
    rest = [[part] * (sizes[part] - done) for part, done in after]
    assert [part[i] for i in range(4) for part in rest if i < len(part)] == turns[position:]
