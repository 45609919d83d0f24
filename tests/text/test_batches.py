"""Batches of like length: every row once, within the bound, in an order that follows from the seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prectr_torchrec.text.batches import pad_batch, shuffled_batches, token_batches

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=200)


@given(LENGTHS, st.integers(1, 100))
def test_a_batch_keeps_to_its_tokens_and_every_row_comes_once(lengths: list[int], max_tokens: int) -> None:
    batches = list(token_batches(lengths, max_tokens))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= max_tokens


def test_the_longest_come_first() -> None:
    assert [rows.tolist() for rows in token_batches([1, 5, 3, 5], 10)] == [[1, 3], [2, 0]]


@given(LENGTHS, st.integers(1, 7), st.integers(0, 3))
def test_an_epoch_has_every_row_once(lengths: list[int], batch_size: int, seed: int) -> None:
    batches = shuffled_batches(lengths, batch_size, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size


def test_training_batches_are_of_like_length_and_in_no_order_of_it() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    batches = shuffled_batches(lengths.tolist(), 10, np.random.default_rng(1))
    longest = [lengths[rows].max() for rows in batches]
    assert np.mean([np.ptp(lengths[rows]) for rows in batches]) < 5
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_padding_goes_where_it_is_asked_for() -> None:
    inputs = {"input_ids": [[7], [8, 9, 10], [5, 6]], "attention_mask": [[1], [1, 1, 1], [1, 1]]}
    left, right = (pad_batch(inputs, np.array([2, 1]), 3, left=left) for left in (True, False))
    assert left["input_ids"].tolist() == [[3, 5, 6], [8, 9, 10]]
    assert left["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert right["input_ids"].tolist() == [[5, 6, 3], [8, 9, 10]]
    assert right["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
