"""What mixed effects add to a ranker: the ranker alone, the effects alone, and both as one, on a search log with an oracle.

    python benchmarks/effects.py --log DIR --out DIR [--config prectr_v2] [--seeds 1 2 3] [--without taste] [--set KEY=VALUE ...]

`--log` is a folder as `prectr simulate` writes it. Every step is the command that a user runs: train the ranker and `mixed`, sums
of the users' events (`prectr effects`), fusion on the validation split, evaluation on all candidates of the test requests with
their grades. Finished steps are kept. Beside expected AUC, of all requests and of users that had no event in the train part and
have a past at the request, it tells how the inferred slope of users ranks with the strictness that the log was made with, by the
events that the user has had at the last request, and how many of the 90 % intervals of slopes hold it.

Controls are logs without an effect (`prectr simulate --strictness 0`, `--query-strictness 0`, `--taste 0`), and `--without`,
which leaves a piece out of the mixed effects: `user`, `query`, `taste`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ablation import prectr, sets
from common import describe, settings_of_samples, spread
from scipy.stats import spearmanr

from prectr_torchrec import metrics as m
from prectr_torchrec.data.simulate.simulate import SLOPE

NEW = "users without training events"
WITHIN = 1.6449
"""Standard deviations on either side that hold 90 % of a Gaussian."""
WITHOUT = {
    "user": ["tables.user_effect=null", "features.user_effect=null"],
    "query": [f"{what}.{who}_effect=null" for what in ("tables", "features") for who in ("query", "group")],
    "taste": ["tables.user_effect.dim=4"],
}
"""Piece of mixed effects -> settings that leave it out."""
EVENTS = {"1-19": (1, 20), "20-99": (20, 100), "100+": (100, 2**62)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="prectr_v2", help="of the ranker")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for the ranker and its samples")
    parser.add_argument("--mixed", action="append", default=[], metavar="KEY=VALUE", help="for the mixed effects")
    parser.add_argument("--without", choices=WITHOUT)
    arguments = parser.parse_args()
    arguments.mixed += WITHOUT.get(arguments.without, [])
    test_from = json.loads((arguments.log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
    common = [f"data.split.test_from={test_from}"]
    samples = {name: arguments.out / name for name in ("samples", "candidates")}
    for name, folder in samples.items():
        extra = ["--candidates", str(arguments.log / "eval" / "oracle.parquet")] if name == "candidates" else []
        options = ["--raw", str(arguments.log / "raw"), "--out", str(folder), *extra, *sets([*common, *arguments.set])]
        prectr(["prepare", "--config", arguments.config, *options])
    measured = [measure(arguments, seed, common, samples) for seed in arguments.seeds]
    print(describe("torch", "torchrec", "fbgemm-gpu-cpu"))
    print(f"{'':34}{'shown':>18}{'all':>18}")
    for name in measured[0]:
        columns = "".join(f"{spread([found[name][part] for found in measured]):>18}" for part in measured[0][name])
        print(f"{name:34}{columns}", flush=True)


def measure(arguments: argparse.Namespace, seed: int, common: list[str], samples: dict[str, Path]) -> dict[str, dict[str, float]]:
    """The lines of the table, for one seed."""
    out, oracle = arguments.out / f"seed-{seed}", arguments.log / "eval" / "oracle.parquet"
    runs = {name: out / name for name in ("ranker", "mixed")}
    own = {
        "ranker": (arguments.config, arguments.set),
        "mixed": ("mixed", [*settings_of_samples(arguments.config), *arguments.mixed]),
    }
    for name, (config, overrides) in own.items():
        settings = sets([*common, *overrides, f"train.seed={seed}"])
        prectr(["train", "--config", config, "--data", str(samples["samples"]), "--run", str(runs[name]), *settings])
    if arguments.without != "user":
        runs["fused"] = out / "fused"
    with_sums = {name: out / name for name in samples}
    for name, folder in with_sums.items():
        if "fused" in runs and not folder.exists():
            events = ["--events", str(samples["samples"])]
            prectr(["effects", "--run", str(runs["mixed"]), "--data", str(samples[name]), "--out", str(folder), *events])
    if "fused" in runs and not (runs["fused"] / "checkpoints" / "index.json").exists():
        members = [str(runs["ranker"]), str(runs["mixed"])]
        prectr(["fuse", *members, "--data", str(with_sums["samples"]), "--run", str(runs["fused"])])
    found: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        data = (with_sums if name == "fused" else samples)["candidates"]
        if not (run / "metrics-candidates.json").exists():
            prectr(["evaluate", "--run", str(run), "--data", str(data), "--oracle", str(oracle)])
        metrics = json.loads((run / "metrics-candidates.json").read_text(encoding="utf-8"))
        found[name] = {part: metrics["oracle"]["expected_auc"][part]["model"] for part in ("shown", "all")}
    for name, run in runs.items():
        found[f"{name}, {NEW}"] = {"all": of_new_users(run, samples, oracle)}
    return found | (slopes(runs["fused"], with_sums["candidates"], oracle) if "fused" in runs else {})


def of_new_users(run: Path, samples: dict[str, Path], oracle: Path) -> float:
    """Expected AUC on all candidates of the requests of users with a past, but none in the train part."""
    parts = (samples["samples"] / "train").glob("part-*.parquet")
    trained = pa.concat_tables([pq.read_table(part, columns=["user_id"]) for part in parts])["user_id"]
    asked = read(samples["candidates"], ["request_id", "user_id", "user_events"])
    known = pc.is_in(asked["user_id"], value_set=trained.combine_chunks())
    new = asked.filter(pc.and_(pc.invert(known), pc.greater(asked["user_events"], 0)))
    scored = pq.read_table(run / "predictions-candidates.parquet", columns=["request_id", "item_id", "click_probability"])
    scored = scored.filter(pc.is_in(scored["request_id"], value_set=new["request_id"].combine_chunks()))
    truth = pq.read_table(oracle, columns=["request_id", "item_id", "probability"])
    joined = scored.join(truth, ["request_id", "item_id"], join_type="inner")
    return m.auc(joined["click_probability"].to_numpy(), joined["probability"].to_numpy()) or float("nan")


def read(folder: Path, columns: list[str]) -> pa.Table:
    """Of all samples of a folder."""
    return pa.concat_tables([pq.read_table(path, columns=columns) for path in folder.rglob("part-*.parquet")])


def slopes(run: Path, candidates: Path, oracle: Path) -> dict[str, dict[str, float]]:
    """Of users at their last requests: rank correlation of slopes with the strictness, and the share of slopes whose interval
    holds the one that was planted; nothing where the oracle knows none."""
    if "user_strictness" not in pq.read_schema(oracle).names:
        return {}
    predictions = pq.read_table(run / "predictions-candidates.parquet", columns=["request_id", "user_slope", "user_slope_sd"])
    slope, sd = (by_request(predictions.select(["request_id", name])) for name in ("user_slope", "user_slope_sd"))
    strictness = by_request(pq.read_table(oracle, columns=["request_id", "user_strictness"]))
    last: dict[int, dict[str, Any]] = {}
    for row in read(candidates, ["request_id", "user_id", "user_events", "timestamp"]).sort_by("timestamp").to_pylist():
        if row["user_id"] and row["request_id"] in slope:
            last[row["user_id"]] = row
    planted = {row["request_id"]: effective(strictness[row["request_id"]]) for row in last.values()}
    middle = statistics.mean(planted.values())
    found = {}
    for name, (low, high) in EVENTS.items():
        requests = [row["request_id"] for row in last.values() if low <= row["user_events"] < high]
        if len(requests) > 2:
            pairs = np.array([[slope[request], strictness[request]] for request in requests])
            within = [abs(slope[r] - planted[r] + middle) <= WITHIN * sd[r] for r in requests]
            measured = {"rank correlation": float(spearmanr(*pairs.T)[0]), "within": statistics.mean(within)}
            found[f"slope, {name} events ({len(requests)} users)"] = measured
    return found


def effective(strictness: float) -> float:
    """The slope of a user of the simulator under a query of the middle: strictness moves it, and it is never negative."""
    return max(0.0, SLOPE + strictness)


def by_request(table: pa.Table) -> dict[int, float]:
    """Of a table with a value for each candidate that is the same for all of a request."""
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


if __name__ == "__main__":
    main()
