"""Where train, validation and test begin, and what of the train part is trained on."""

from __future__ import annotations

from typing import Any, NamedTuple

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.columns import SAMPLE_WEIGHT
from prectr_torchrec.data.hashing import hash_id_sql
from prectr_torchrec.data.raw.labels import label_sources
from prectr_torchrec.data.raw.readings import IdKind
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


class Trained(NamedTuple):
    """What is trained on, in SQL.

    Attributes:
        rows: of the train part, what stands behind FROM.
        weight: what each of them counts, a further column; "" where all count 1.
        findings: for the manifest, where candidates are weighted: `left_out`, the numbers of `requests` and `candidates` of the
            train part that are not trained on, and the `mean_weight` of the others.
    """

    rows: str
    weight: str
    findings: dict[str, Any]


def find_trained(con: Connection, data: DataConfig, events: str, begins: dict[str, int], kind: IdKind) -> Trained:
    """Draws the requests to train on, and weighs their candidates so that they count 1 on average.

    Of the requests without a click or label a share is kept, those whose ids have a low hash: the same ones on every machine, and
    those of a smaller share among those of a larger. A kept one counts for all of them.

    Args:
        con: connection with the tables of the log; gets a temporary one.
        data: the configuration.
        events: SQL of the events with the labels that are trained on.
        begins: as of `split_times`.
        kind: how ids of requests are read.

    Raises:
        RawLogError: all weights are 0.
    """
    condition = in_train(data, begins)
    if not data.weighted:
        return Trained(f"{events} WHERE {condition}", "", {})
    labels = ", ".join(label.column for label in label_sources(data))
    draw = f"{_id_hash('request_id', kind)} < {int(data.keep_unclicked * 2**63)}"
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE unclicked AS SELECT request_id, {draw} AS kept, count(*) AS candidates
        FROM {events} WHERE {condition} GROUP BY request_id HAVING max(greatest({labels})) < 1"""
    )
    left_out = one_row(con, "SELECT count(*), coalesce(sum(candidates), 0) FROM unclicked WHERE NOT kept")
    rows = f"{events} LEFT JOIN unclicked u USING (request_id) WHERE {condition} AND coalesce(u.kept, true)"
    weight = f"{SAMPLE_WEIGHT if data.weight else 1.0} * CASE WHEN u.kept THEN {1 / data.keep_unclicked!r} ELSE 1.0 END"
    (mean,) = one_row(con, f"SELECT avg(({weight})::DOUBLE) FROM {rows}")
    if mean == 0:
        raise RawLogError(f"data.weight: all candidates of the train part have weight 0 in column {data.weight!r}")
    findings = {"left_out": dict(zip(("requests", "candidates"), map(int, left_out), strict=True)), "mean_weight": mean}
    return Trained(rows, f", (({weight}) / {mean or 1.0!r})::FLOAT AS {SAMPLE_WEIGHT}", findings)


def _id_hash(column: str, kind: IdKind) -> str:
    """A number in 0 .. 2^63 - 1, the same of an id that is a whole number and of its text."""
    if kind in ("text", "normalised"):
        return column  # a hash itself
    written = f"({column}::HUGEINT + CASE WHEN {column} < 0 THEN {2**64}::HUGEINT ELSE 0 END)" if kind == "unsigned" else column
    return hash_id_sql(f"CAST({written} AS VARCHAR)")
