"""From ids of a log to 64-bit ids and to table rows, the same way in training and in serving."""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np
from numpy.typing import NDArray

from prectr_torchrec.config.data import ZeroId


def table_rows(ids: NDArray[np.int64], num_embeddings: int) -> NDArray[np.int64]:
    """Rows `mix64(id) % num_embeddings`; id 0, "none", is always row 0.

    Args:
        ids: any shape, int64.
        num_embeddings: rows of the table, at least 1.

    Returns:
        The rows in `0..num_embeddings - 1`, same shape, int64.
    """
    mixed = mix64(ids)
    quotient = mixed // np.uint64(num_embeddings)  # numpy vectorises division by a scalar, but not the remainder
    quotient *= np.uint64(num_embeddings)
    mixed -= quotient
    return mixed.view(np.int64)


def mix64(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: a bijection of 64-bit integers whose every output bit depends on every input bit."""
    z = ids.astype(np.uint64)
    shifted = np.empty_like(z)  # in place: fresh memory costs as much as the arithmetic
    z ^= np.right_shift(z, np.uint64(30), out=shifted)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= np.right_shift(z, np.uint64(27), out=shifted)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= np.right_shift(z, np.uint64(31), out=shifted)
    return z


def hash_id(value: str) -> int:
    """The 63-bit id of a text: the last 8 bytes of its MD5, the first of them the lowest, without the highest bit.

    `prepare` computes the same inside DuckDB.
    """
    return int.from_bytes(hashlib.md5(value.encode()).digest()[8:], "little") & (2**63 - 1)


def joined_by(separator: str) -> str:
    """What stands between the levels of a path in the text whose hash is a level's id, however the log writes it."""
    return f" {separator.strip()} " if separator.strip() else separator


def path_levels(path: str, separator: str) -> list[str]:
    """The path down to each of its levels.

    Example::

        assert path_levels("Home>Kitchen > ", ">") == ["Home", "Home > Kitchen"]
    """
    levels = [level.strip(_SPACES) for level in path.split(separator)]
    levels = [level for level in levels if level]
    return [joined_by(separator).join(levels[:depth]) for depth in range(1, len(levels) + 1)]


ZERO_ID = hash_id("0")
"""The id 0 of a log whose 0 is an id (`data.zero_id: id`): 0 itself stands for none. The text "0" has it anyway."""


def zero_becomes(zero: ZeroId) -> tuple[int, int]:
    """The id that 0 or the text "0" may have been read as, and the one that it is."""
    return (ZERO_ID, 0) if zero == "none" else (0, ZERO_ID)


def zero_sql(value: str, zero: ZeroId) -> str:
    """DuckDB expression of an id where 0 and the text "0" are the same: none, which is 0, or an id."""
    found, becomes = zero_becomes(zero)
    return f"(CASE WHEN {value} = {found} THEN {becomes} ELSE {value} END)"


def hash_id_sql(text: str) -> str:
    """DuckDB's SQL for `hash_id`."""
    return f"CAST(md5_number_lower({text}) & {2**63 - 1} AS BIGINT)"


def hash_sql(text: str) -> str:
    """DuckDB's SQL for a number in 0 .. 2^62 - 1 that depends on the text alone, on every machine and release."""
    return f"CAST(md5_number_lower({text}) & {2**62 - 1} AS BIGINT)"


_SPACES = "".join(c for c in map(chr, range(0x3001)) if unicodedata.category(c) == "Zs")
"""What DuckDB trims."""


def normalised(text: str) -> str:
    """A text without its case and superfluous spaces, as `normalised_sql` makes it."""
    single = re.sub("[ \\t\\n\\f\\r]+", " ", unicodedata.normalize("NFC", text)).strip(_SPACES)
    return "".join(character.lower()[0] for character in single)  # one for one, as DuckDB does


def normalised_sql(text: str) -> str:
    """DuckDB expression of a text without its case and superfluous spaces: texts that agree in it are one query."""
    return rf"lower(trim(regexp_replace(nfc_normalize({text}), '\s+', ' ', 'g')))"
