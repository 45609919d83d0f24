import hashlib

import numpy as np

from prectr_torchrec.data.hashing import hash_id, mix64, table_rows


def test_the_id_of_a_text_is_computed_as_the_documentation_says() -> None:
    for text in ("", "req-1011", "Käse"):
        last_bytes = hashlib.md5(text.encode("utf-8")).digest()[-8:]
        assert hash_id(text) == int.from_bytes(last_bytes, "little") % 2**63


def test_mix64_is_the_finaliser_of_splitmix64() -> None:
    # SplitMix64 seeded with 0 and 1234567 first gives these: its state after one step is seed + 0x9E3779B97F4A7C15
    states = np.array([0x9E3779B97F4A7C15, 1234567 + 0x9E3779B97F4A7C15], dtype=np.uint64).view(np.int64)
    assert mix64(states).tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]


def test_table_rows_are_the_remainders_of_the_mixed_ids() -> None:
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000)
    for rows in (1, 2, 101, 2**20, 10**9 + 7):
        assert table_rows(ids, rows).tolist() == [int(z) % rows for z in mix64(ids)]


def test_no_id_is_row_zero_and_the_ids_are_left_alone() -> None:
    ids = np.array([0, 1, 2])
    assert table_rows(ids, 1000)[0] == 0
    assert ids.tolist() == [0, 1, 2]


def test_rows_fill_a_table_evenly() -> None:
    counts = np.bincount(table_rows(np.arange(100_000), 100), minlength=100)
    assert counts.min() > 850 and counts.max() < 1150
