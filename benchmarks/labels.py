"""Labels that follow the click: one ranker for the chain, beside rankers trained on the click alone and on orders alone.

    python benchmarks/labels.py --out DIR [--requests 12000] [--config demo] [--seeds 1 2 3] [--set KEY=VALUE ...]

The log is simulated with carts and orders that depend on each item and on the grade. All three read the same samples but for the
label: `click` has no further labels, in `order` the column of clicks has the orders, and so have histories and counters. Every
step is the command that a user runs, and finished runs are kept. The table has the AUC of logged orders and clicks, the expected
AUC of clicks, predicted over observed of each label, and what the first three places capture of the orders' true worth, the
oracle's probabilities, when candidates rank by the chance of a click, of an order, or by the score of both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from ablation import prectr, sets
from common import describe, spread

from prectr_torchrec import metrics as m

WORTH = {"click": 1.0, "order": 20.0}
LABELS = "data.labels={cart: {time: cart_time}, order: {time: order_time, after: cart}, click: {time: click_time}}"
KINDS: dict[str, list[str]] = {
    "chain": [LABELS, f"score={{click: {WORTH['click']}, order: {WORTH['order']}}}"],
    "click": ["data.labels={click: {time: click_time}}"],
    "order": ["data.raw.impressions.columns={click: order}", "data.labels={click: {time: order_time}}"],
}
PLACES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=12_000)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    log = arguments.out / "log"
    if not (log / "meta.json").exists():
        prectr(["simulate", "--out", str(log), "--requests", str(arguments.requests), "--labels", "1"])
    test_from = json.loads((log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
    found: dict[str, dict[str, list[float]]] = {}
    for kind, overrides in KINDS.items():
        settings = [f"data.split.test_from={test_from}", *overrides, *arguments.set]
        data = arguments.out / f"samples-{kind}"
        prectr(["prepare", "--config", arguments.config, "--raw", str(log / "raw"), "--out", str(data), *sets(settings)])
        for seed in arguments.seeds:
            run = arguments.out / f"{kind}-{seed}"
            options = ["--data", str(data), "--run", str(run), *sets([*settings, f"train.seed={seed}"])]
            prectr(["train", "--config", arguments.config, *options])
            if not (run / "metrics-test.json").exists():
                oracle = ["--oracle", str(log / "eval" / "oracle.parquet")]
                prectr(["evaluate", "--run", str(run), "--data", str(data), *oracle])
            for name, value in measured(kind, run, log).items():
                found.setdefault(name, {}).setdefault(kind, []).append(value)
    print(describe("torch", "torchrec", "fbgemm-gpu-cpu"))
    print(f"{'':44}" + "".join(f"{kind:>18}" for kind in KINDS))
    for name, values in found.items():
        print(f"{name:44}" + "".join(f"{spread(values.get(kind, [])):>18}" for kind in KINDS), flush=True)


def measured(kind: str, run: Path, log: Path) -> dict[str, float]:
    """The lines of a run."""
    metrics = json.loads((run / "metrics-test.json").read_text(encoding="utf-8"))
    click, at_position = metrics["clicks"], metrics["clicks_at_position"]
    rows: dict[str, float] = {}
    if kind == "order":
        rows |= {"AUC of orders": click["auc"], "orders, predicted / observed": at_position["calibration"]}
    else:
        rows |= {"AUC of clicks": click["auc"], "clicks, predicted / observed": at_position["calibration"]}
        rows["expected AUC of clicks, shown"] = metrics["oracle"]["expected_auc"]["shown"]["model"]
    if kind == "chain":
        for label in ("cart", "order"):
            rows[f"AUC of {label}s"] = metrics["labels"][label]["auc"]
            rows[f"{label}s, predicted / observed"] = metrics["labels"][label]["calibration"]
    return rows | captured(kind, run, log)


def captured(kind: str, run: Path, log: Path) -> dict[str, float]:
    """The share of the true worth of each request's shown candidates that the first places have, by order of ranking."""
    columns = ["request_id", "item_id", "click_probability", *(["order_probability", "score"] if kind == "chain" else [])]
    predictions = pq.read_table(run / "predictions-test.parquet", columns=columns)
    oracle = pq.read_table(log / "eval" / "oracle.parquet", columns=["request_id", "item_id", "probability", "order_probability"])
    names = {"probability": "true_click", "order_probability": "true_order"}
    joined = predictions.join(oracle.rename_columns([names.get(n, n) for n in oracle.column_names]), ["request_id", "item_id"])
    values = {name: joined[name].to_numpy() for name in joined.column_names}
    worth = WORTH["click"] * values["true_click"] + WORTH["order"] * values["true_order"]
    orders = {"its click probability": values["click_probability"]} if kind != "order" else {}
    orders |= (
        {"its probability of an order": values["order_probability" if kind == "chain" else "click_probability"]}
        if (kind != "click")
        else {}
    )
    orders |= {"its score": values["score"], "the oracle": worth} if kind == "chain" else {}
    request = values["request_id"]
    return {
        f"worth captured@{PLACES} by {name}": m.captured_value(np.asarray(order), worth, request, PLACES) or float("nan")
        for name, order in orders.items()
    }


if __name__ == "__main__":
    main()
