"""A small prepared folder, made-up scores for it and an oracle; run as a script: `evaluate` on the ranks of torchrun."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.data.schema import SAMPLE_VERSION
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import evaluate
from prectr_torchrec.evaluation.part_columns import part_columns
from prectr_torchrec.evaluation.predictions import LEVELS, Rows
from prectr_torchrec.modules import ReportedPart

REQUESTS = 40
PAST = (0, 1, 19, 20, 99, 100, 5000)
"""Events of users 0 to 6 before each test request."""
EXAMINATION = [1.0, 0.9, 0.8, 0.7]
CANDIDATES = 5


def write_prepared(folder: Path) -> None:
    """A test split in two shards, request ids in no order; training impressions of query 1, a judgment of query 2.

    Of test request r: user r % 7 has `PAST[r % 7]` events, query r % 5 has as many as its id, item i was shown i % 2 times.
    """
    requests = np.random.default_rng(0).permutation(REQUESTS) + 100
    for shard, ids in enumerate(np.array_split(requests, 2)):
        candidates = [[int(i) * 10 + c for c in (3, 1, 4, 0, 2)] for i in ids]
        columns = {"request_id": ids, "user_id": ids % 7, "query_id": ids % 5, "candidate_item_id": candidates}
        columns |= {"query": [f"query {q}" for q in ids % 5]}
        columns |= {"candidate_position": [[c + 1 for c in (3, 1, 4, 0, 2)] for _ in ids], "query_events": ids % 5}
        columns |= {"candidate_shown": [[float(item % 2) for item in items] for items in candidates]}
        columns |= {"user_events": np.array(PAST)[ids % 7]}
        write(folder / "test" / f"part-{shard:05d}.parquet", columns)
    # 101 and 106 are of query 1, 102 of query 2; of the item's two impressions only one has a grade
    write_trained(
        folder / "train", query_id=[1, 1], candidate_item_id=[[1011], [1061, 1063]], candidate_relevance=[[3.0], [2.0, None]]
    )
    write_trained(folder / "judgments", query_id=[2], candidate_item_id=[[1021]], candidate_relevance=[[1.0]])
    manifest = {"version": SAMPLE_VERSION, "max_candidates": 10, "settings": {"data": {}}, "examination": EXAMINATION}
    (folder / "prepared.json").write_text(json.dumps({**manifest, "simulated": True}), encoding="utf-8")


def write_trained(folder: Path, **columns: Any) -> None:
    columns["query"] = [f"Query  {q} " for q in columns["query_id"]]  # the same queries, written otherwise
    types = {
        "query_id": pa.int64(),
        "query": pa.string(),
        "candidate_item_id": pa.list_(pa.int64()),
        "candidate_relevance": pa.list_(pa.float32()),
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table({name: pa.array(columns[name], kind) for name, kind in types.items()}), folder / "part-00000.parquet")


def write_oracle(path: Path, drop: int = 0) -> None:
    """True probabilities for every candidate of `write_prepared` but the first `drop`, the first two of a request exposed."""
    request, place = (x.ravel()[drop:] for x in np.mgrid[100 : 100 + REQUESTS, 0:CANDIDATES])
    item, rng = request * 10 + place, np.random.default_rng(9)
    columns = {"request_id": request, "item_id": item, "probability": rng.random(len(item)), "exposed": place < 2}
    write(path, {**columns, "relevance": 1 + item % 3.0, "user_strictness": request % 7.0})  # of user request % 7


def write(path: Path, columns: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def columns(*, personal: bool = False, mixture: bool = True) -> list[pa.Field]:
    """Of `scored`, what a ranker with a relevance tower reports: with a preference and taste, with levels that are mixed."""
    weights = ReportedPart("weights", width=3, names=("weight_own", "weight_peers", "weight_prior"))
    effects = [f"effect_{whose}{what}" for whose in ("own", "peers") for what in ("", *["_slope"] * mixture)]
    return part_columns(
        {
            LEVELS: ReportedPart("levels", width=4),
            **({"levels_in_order": ReportedPart("whether levels are in order")} if mixture else {}),
            **{name: ReportedPart(name.replace("_", " of "), signed=True) for name in effects},
            **({"preference_weights": weights, "taste": ReportedPart("taste", signed=True)} if personal else {}),
        }
    )


def scored(rank: int = 0, world_size: int = 1, *, labels: bool = True, personal: bool = False) -> Iterator[Rows]:
    """The rows of every world_size-th request, a batch each; scores depend on the ids alone.

    With `personal`, the effect of the own past is the user's number times the grade of `write_oracle`, that of the peers' past
    the grade.
    """
    for request in range(100 + rank, 100 + REQUESTS, world_size):
        item = request * 10 + np.arange(CANDIDATES)
        rng = np.random.default_rng(request)
        click = (rng.random(CANDIDATES) < 0.4).astype(np.float32)
        weights = np.random.default_rng(request).dirichlet(np.ones(3), CANDIDATES).astype(np.float32)
        columns = {f"weight_{side}": weights[:, i] for i, side in enumerate(("own", "peers", "prior"))}
        columns |= {"taste": np.zeros(CANDIDATES, np.float32)}
        effects = {"effect_own": request % 7 * (1 + item % 3), "effect_own_slope": item % 2 + (request % 7) ** 2}
        effects |= {"effect_peers": 1 + item % 3, "effect_peers_slope": item % 5}
        yield {
            **(columns if personal else {}),
            **{name: (values * personal).astype(np.float32) for name, values in effects.items()},
            "request_id": np.full(CANDIDATES, request),
            "item_id": item,
            "user_id": np.full(CANDIDATES, request % 7),
            "click_probability": rng.random(CANDIDATES, dtype=np.float32),
            "logged_logit": (10 * click - 5).astype(np.float32),
            "levels_in_order": (item % 4 > 0).astype(np.float32),
            "relevance_probabilities": rng.dirichlet(np.ones(4), CANDIDATES).astype(np.float32),
            "relevance": np.where(item % 2, 1 + item % 3, np.nan).astype(np.float32),
            "click": click if labels else np.full(CANDIDATES, np.nan, np.float32),
            "position": np.arange(CANDIDATES) + 1,
        }


PERSONAL = columns(personal=True)
SEGMENTS = {"0": (0,), "1-19": (1, 2), "20-99": (3, 4), "100+": (5, 6)}
"""Users by their past, `PAST`."""


def measure(
    data: Path,
    rows: Iterable[Rows] | None = None,
    *,
    oracle: Path | None = None,
    train: Path | None = None,
    parts: list[pa.Field] | None = None,
    grades: Literal["visible", "hidden"] = "visible",
    relevance: bool = True,
) -> dict[str, Any]:
    """Evaluates `scored`, or other rows, on the test split of `write_prepared`; predictions are written beside the folder."""
    found = evaluate(
        rows if rows is not None else scored(),
        settings=DataConfig(),
        parts=columns() if parts is None else parts,
        relevance=relevance,
        split=data / "test",
        train=train or data / "train",
        predictions=data.parent / "predictions.parquet",
        oracle=oracle,
        grades=grades,
    )
    assert found is not None
    return found


def predicted_rows(data: Path) -> dict[str, list[Any]]:
    """The predictions that `measure` wrote, by column."""
    columns: dict[str, list[Any]] = pq.read_table(data.parent / "predictions.parquet").to_pydict()
    return columns


def main(data: str, out: str) -> None:
    """What each of several ranks does."""
    with process_group("cpu") as (rank, world_size, _):
        found = evaluate(
            scored(rank, world_size),
            settings=DataConfig(),
            parts=columns(),
            split=Path(data) / "test",
            train=Path(data) / "train",
            predictions=Path(out) / "predictions.parquet",
            rank=rank,
            world_size=world_size,
        )
    if found is not None:
        (Path(out) / "metrics.json").write_text(json.dumps(found), encoding="utf-8")
