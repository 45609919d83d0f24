"""Where train, validation and test begin, and what of the train part is trained on."""

from __future__ import annotations

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.raw.source import Connection, RawLogError, one_row


def split_times(con: Connection, data: DataConfig) -> dict[str, int]:
    """Timestamps where train, validation and test begin, and one past the last request.

    Raises:
        RawLogError: there would be nothing to train on.
    """
    split = data.split
    first, last, requests = one_row(con, "SELECT min(timestamp), max(timestamp), count(*) FROM requests")

    def latest(fraction: float, end: int) -> int:
        """Where the latest `fraction` of the requests before `end` begins; requests of equal time stay together."""
        before = f"FROM requests WHERE timestamp < {end}"
        count = one_row(con, f"SELECT count(*) {before}")[0]
        skipped = round(count * (1 - fraction))
        if skipped == count:
            return end
        return int(one_row(con, f"SELECT timestamp {before} ORDER BY timestamp LIMIT 1 OFFSET {skipped}")[0])

    test = latest(split.test_fraction, last + 1) if split.test_from is None else split.test_from
    end = min(test, last + 1)
    validation = latest(split.validation_fraction, end) if split.validation_from is None else split.validation_from
    if not first < validation <= test:
        raise RawLogError(
            f"data.split: validation from {validation} and test from {test} leave nothing to train on, or are out of order; "
            f"the log's {requests} requests run from {first} to {last}"
        )
    return {"train": first, "validation": validation, "test": test, "end": last + 1}


def in_train(data: DataConfig, begins: dict[str, int]) -> str:
    """What is true of the events of the train part, in SQL; `begins` is what `split_times` gives."""
    least = data.train_minimum_grade
    narrow = "" if least is None else f" AND NOT isnan(relevance) AND relevance >= {least}::FLOAT"
    return f"timestamp < {begins['validation']}{narrow}"
