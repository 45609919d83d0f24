"""Sizes of memory, read and written."""

import pytest

from prectr_torchrec.system.sizes import format_bytes, parse_bytes

SIZES = {"80GB": 80 * 10**9, "2 TB": 2 * 10**12, "1.5GiB": 3 * 2**29, "500 mb": 500 * 10**6, "0GB": 0, "7B": 7}


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_a_decimal_unit_is_decimal_and_a_binary_one_binary(text: str, size: int) -> None:
    assert parse_bytes(text, "data.memory") == size


@pytest.mark.parametrize("text", ["2000", "80 gigs", "-1GB", "GB", ""])
def test_what_is_no_size_is_refused_with_its_setting_and_what_would_be_one(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^data.memory: '{text}' is no size; write it as 80GB \(10\^9 bytes\), 500MB or 2GiB"):
        parse_bytes(text, "data.memory")


def test_sizes_are_written_in_three_digits_and_decimal_units() -> None:
    assert [format_bytes(size) for size in (0, 999, 1320e9, 25.2e9)] == ["0 B", "999 B", "1.32 TB", "25.2 GB"]
