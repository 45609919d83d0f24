"""What mixed effects cost: sums over past events, and a served request.

    python benchmarks/effect_costs.py [--impressions 1000000] [--runs RANKER FUSED --data SAMPLES --data-with-sums SAMPLES2]

Sums are those of `prectr effects` without the scoring: impressions a CPU-second, of users with 120 impressions, six a request,
ten coefficients. With the runs of a ranker and of the same one fused with mixed effects it exports both and scores one request
with the candidates of others too, 1,000 in all, in turns; medians of the rounds, CPU time. Texts were seen before.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import Rate, describe, median, ratio, take_turns

from prectr_torchrec import Ranker
from prectr_torchrec.serving.export import export
from prectr_torchrec.state.effect_filter import filtered_before
from prectr_torchrec.state.effects import EffectEvents, as_known, sums_before

D, OF_USER, OF_REQUEST, CANDIDATES = 10, 120, 6, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impressions", type=int, default=1_000_000)
    parser.add_argument("--runs", type=Path, nargs=2)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--data-with-sums", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(describe("torch", "torchrec", "numpy"))
    events = made(arguments.impressions)
    moments = np.unique(np.stack([events.user, events.time], axis=1), axis=0)
    for name, found in (
        ("as the user was inferred to be", lambda: filtered_before(events, *moments.T, np.ones(D))),
        ("linear around zero", lambda: sums_before(events, *moments.T)),
    ):
        began = time.process_time()
        rows = sum(len(rows) for rows, _ in found())
        assert rows == len(moments)
        print(f"sums, {name}: {arguments.impressions / (time.process_time() - began):,.0f} impressions a CPU-second")
    if arguments.runs:
        served(arguments.runs, [arguments.data, arguments.data_with_sums], arguments.rounds)


def made(impressions: int) -> EffectEvents:
    """Events of random impressions, sorted."""
    rng = np.random.default_rng(0)
    user, time = np.arange(impressions) // OF_USER + 1, np.arange(impressions) % OF_USER // OF_REQUEST
    logit = rng.normal(-1.5, 1.0, impressions)
    events = as_known(time, rng.random(impressions) < 1 / (1 + np.exp(-logit)), None)
    of = events.impression
    x = rng.normal(size=(impressions, D))
    return EffectEvents.sort(user[of], events.time, x[of], logit[of], np.full(len(of), 0.7), of, events.click)


def served(runs: list[Path], data: list[Path], rounds: int) -> None:
    """Prints how long a request of 1,000 candidates takes, of both rankers in turns."""
    with tempfile.TemporaryDirectory() as folder:
        rankers: dict[str, tuple[Ranker, pa.Table]] = {}
        for name, run, samples in zip(("alone", "with mixed effects"), runs, data, strict=True):
            export(run, Path(folder) / name)
            ranker = Ranker.load(Path(folder) / name)
            table = pq.read_table(next(iter(sorted((samples / "test").glob("part-*.parquet")))))
            rankers[name] = ranker, ranker.schema.from_arrow(gathered(table.slice(0, CANDIDATES)))
        work = {name: lambda ranker=ranker, sample=sample: of_one(ranker, sample) for name, (ranker, sample) in rankers.items()}
        for call in work.values():
            call()  # what is loaded late
        rates: dict[str, list[Rate]] = take_turns(work, rounds)
        for name, found in rates.items():
            print(f"{CANDIDATES:,} candidates, {name}: {CANDIDATES / median(found).cpu * 1000:.1f} ms of CPU")
        alone, fused = rates.values()
        print(f"with mixed effects it takes {ratio(alone, fused).cpu:.2f} times as long")


def of_one(ranker: Ranker, sample: pa.Table) -> int:
    """Scores a request; how many candidates."""
    return len(ranker.score_samples(sample)[0].item_id)


def gathered(samples: pa.Table) -> pa.Table:
    """The first request, with the candidates of all that follow."""
    row, *others = samples.to_pylist()
    lists = {name: list(values) for name, values in row.items() if name.startswith("candidate_")}
    for other in others:
        for name, values in lists.items():
            values.extend(other[name][: CANDIDATES - len(values)])
    return pa.Table.from_pylist([row | lists | {"num_candidates": CANDIDATES}], schema=samples.schema)


if __name__ == "__main__":
    main()
