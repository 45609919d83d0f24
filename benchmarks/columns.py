"""What a log's own columns are worth, by kind: rankers with and without them, where they move clicks and where they do not.

    python benchmarks/columns.py --out DIR [--kinds price tags] [--requests 12000] [--seeds 1 2 3] [--effects] [--trees]
                                 [--set KEY=VALUE ...]

Of each kind a log is simulated in which its column moves clicks, of `all` one in which all do, and one in which none does.
Both rankers of a pair read the same requests and differ in the columns alone. `to win` is what the oracle's own part of the
logit would add to the score of the ranker without the column, with the weight that suits the true probability best. With
`--effects` each ranker is one with mixed effects, which have the columns too (`prectr effects`, `prectr fuse`). `--trees` adds
LambdaMART and binary trees on the same columns, of 10 trials each, chosen on the validation part. Figures are expected AUC of
the shown candidates of the test part. Every step is the command that a user runs, and finished runs are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from ablation import prectr, sets
from common import describe, logistic, settings_of_samples, spread

from prectr_torchrec import metrics as m


class Kind(NamedTuple):
    """What a kind of column needs in the configuration."""

    columns: list[str]
    """Their declaration."""
    ranker: list[str]
    """What reads them."""
    mixed: list[str]
    """The same of mixed effects: a user's row is as wide as its coefficients want, 2 and 8 of taste without columns."""


TAGS = ["tables.tag={rows: 100, dim: 8, sharding: [table_wise]}", "features.candidate_tags={table: tag, pooling: mean}"]
DEVICE = ["tables.device={rows: 16, dim: 8, sharding: [table_wise]}", "features.device={table: device}"]
NUMBERS, VECTORS, TASTE = "model.parts.numbers={}", "model.parts.vectors={}", "model.parts.vector_taste={}"
TEXTS = ["model.parts.further_match={}"]
WORTH = "{rows: 100, dim: 4, optimizer: adagrad, sharding: [table_wise]}"
OF_TAGS = [f"tables.worth={WORTH}", "features.candidate_tags_worth={table: worth, column: candidate_tags, pooling: mean}"]
OF_DEVICE = [f"tables.readiness={WORTH}", "features.device_worth={table: readiness, column: device}"]
WITH_NUMBER = [NUMBERS, "tables.user_effect.dim=24"]
KINDS: dict[str, Kind] = {
    "price": Kind(["data.columns.items={price: {number: {transform: log1p}}}"], [NUMBERS], WITH_NUMBER),
    "rating": Kind(["data.columns.items={rating: number}"], [NUMBERS], WITH_NUMBER),
    "tags": Kind(["data.columns.items={tags: ids}"], TAGS, OF_TAGS),
    "image": Kind(
        ["data.columns.items={image: {vector: {width: 16, history: true}}}"],
        [VECTORS, TASTE],
        [VECTORS, "tables.user_effect.dim=52"],
    ),
    "context": Kind(["data.columns.requests={device: id, hour: number}"], [NUMBERS, *DEVICE], [NUMBERS, *OF_DEVICE]),
    "engine": Kind(["data.columns.impressions={engine_score: number}"], [NUMBERS], WITH_NUMBER),
    "description": Kind(["data.columns.items={description: text}"], TEXTS, []),
    "all": Kind(
        [
            "data.columns.items={price: {number: {transform: log1p}}, rating: number, tags: ids, description: text, "
            "image: {vector: {width: 16, history: true}}}",
            "data.columns.requests={device: id, hour: number}",
            "data.columns.impressions={engine_score: number}",
        ],
        [NUMBERS, VECTORS, TASTE, *TEXTS, *TAGS, *DEVICE],
        [NUMBERS, VECTORS, *OF_TAGS, *OF_DEVICE, "tables.user_effect.dim=60"],
    ),
}
"""Multiplier of the simulated log, or all of them -> what its columns need."""
NONE = Kind([], [], [])
EFFECTS = [kind for kind in KINDS if kind != "all"]
NOTHING = 1e-9
"""A multiplier with which the columns are there and move no click."""
TREES = {"trees": "binary", "lambdamart": "lambdarank"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--requests", type=int, default=12_000)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--effects", action="store_true")
    parser.add_argument("--trees", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    print(describe("torch", "torchrec", "fbgemm-gpu-cpu"))
    names = ["without", "with", "gain", "to win", *(TREES if arguments.trees else ()), "no effect: gain"]
    print(f"{'':12}" + "".join(f"{name:>18}" for name in names), flush=True)
    nothing = simulate(arguments, "nothing", dict.fromkeys(EFFECTS, NOTHING))
    bare = Samples(arguments, nothing, "bare", NONE)
    for kind in arguments.kinds:
        effects = EFFECTS if kind == "all" else [kind]
        log = simulate(arguments, kind, dict.fromkeys(effects, 1.0))
        without, own = Samples(arguments, log, f"{kind}-without", NONE), Samples(arguments, log, kind, KINDS[kind])
        idle = Samples(arguments, nothing, f"{kind}-idle", KINDS[kind])
        found: dict[str, list[float]] = {name: [] for name in names}
        for seed in arguments.seeds:
            before, after = without.auc(seed), own.auc(seed)
            for name, value in (
                ("without", before),
                ("with", after),
                ("gain", after - before),
                ("to win", without.auc_with(seed, effects) - before),
                ("no effect: gain", idle.auc(seed) - bare.auc(seed)),
                *((name, own.trees_auc(name, objective, seed)) for name, objective in TREES.items() if arguments.trees),
            ):
                found[name].append(value)
        print(f"{kind:12}" + "".join(f"{spread(found[name]):>18}" for name in names), flush=True)


def simulate(arguments: argparse.Namespace, name: str, multipliers: dict[str, float]) -> Path:
    """A log with these columns."""
    log = arguments.out / f"log-{name}"
    if not (log / "meta.json").exists():
        options = [word for effect, value in multipliers.items() for word in (f"--{effect}", str(value))]
        prectr(["simulate", "--out", str(log), "--requests", str(arguments.requests), *options])
    return log


class Samples:
    """Samples of a log with some settings, and what rankers on them reach."""

    def __init__(self, arguments: argparse.Namespace, log: Path, name: str, kind: Kind) -> None:
        test_from = json.loads((log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
        common = [f"data.split.test_from={test_from}", *kind.columns]
        self._settings = [*common, *kind.ranker, *arguments.set]
        self._mixed = [*common, *kind.mixed, *settings_of_samples(arguments.config)]
        self._arguments, self._log, self._name, self._data = arguments, log, name, arguments.out / f"samples-{name}"
        self._oracle = log / "eval" / "oracle.parquet"
        options = ["--raw", str(log / "raw"), "--out", str(self._data), *sets(self._settings)]
        prectr(["prepare", "--config", arguments.config, *options])

    def auc(self, seed: int) -> float:
        """Of a ranker."""
        return _expected_auc(self._trained(seed))

    def auc_with(self, seed: int, effects: list[str]) -> float:
        """Of the ranker's score and effects of the oracle, with the best weights."""
        columns = ["request_id", "item_id", "click_probability"]
        scored = pq.read_table(self._trained(seed) / "predictions-test.parquet", columns=columns)
        names = [f"{effect}_effect" for effect in effects]
        oracle = pq.read_table(self._oracle, columns=["request_id", "item_id", "probability", *names])
        joined = scored.join(oracle, ["request_id", "item_id"], join_type="inner")
        score, truth, *parts = (joined[n].to_numpy().astype(float) for n in ("click_probability", "probability", *names))
        score = np.clip(score, 1e-6, 1 - 1e-6)
        design = np.stack([np.ones(len(score)), np.log(score / (1 - score)), *parts], axis=1)
        return m.auc(design @ logistic(design, truth), truth) or float("nan")

    def trees_auc(self, name: str, objective: str, seed: int) -> float:
        """Of boosted trees, with the settings that suit the validation part best."""
        run = self._arguments.out / f"{name}-{self._name}-{seed}"
        if not (run / "metrics-test.json").exists():
            settings = sets([f"objective={objective}", f"seed={seed}", "trials=10"])
            prectr(["baseline", "trees", "--data", str(self._data), "--run", str(run), "--oracle", str(self._oracle), *settings])
        return _expected_auc(run)

    def _trained(self, seed: int) -> Path:
        """The run of the ranker, or of it and mixed effects."""
        run = self._run("run", self._arguments.config, self._settings, seed)
        if not self._arguments.effects:
            return self._evaluated(run, self._data)
        mixed = self._run("mixed", "mixed", self._mixed, seed)
        with_sums, fused = (self._arguments.out / f"{what}-{self._name}-{seed}" for what in ("sums", "fused"))
        if not with_sums.exists():
            prectr(["effects", "--run", str(mixed), "--data", str(self._data), "--out", str(with_sums)])
        if not (fused / "checkpoints" / "index.json").exists():
            prectr(["fuse", str(run), str(mixed), "--data", str(with_sums), "--run", str(fused)])
        return self._evaluated(fused, with_sums)

    def _run(self, what: str, config: str, settings: list[str], seed: int) -> Path:
        run = self._arguments.out / f"{what}-{self._name}-{seed}"
        options = sets([*settings, f"train.seed={seed}"])
        prectr(["train", "--config", config, "--data", str(self._data), "--run", str(run), *options])  # at once if it is done
        return run

    def _evaluated(self, run: Path, data: Path) -> Path:
        if not (run / "metrics-test.json").exists():
            prectr(["evaluate", "--run", str(run), "--data", str(data), "--oracle", str(self._oracle)])
        return run


def _expected_auc(run: Path) -> float:
    metrics = json.loads((run / "metrics-test.json").read_text(encoding="utf-8"))
    return float(metrics["oracle"]["expected_auc"]["shown"]["model"])


if __name__ == "__main__":
    main()
