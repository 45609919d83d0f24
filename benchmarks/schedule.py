"""How many passes suit a log of a size, and whether the rates follow the batch: simulated logs, expected AUC at the last step.

    python benchmarks/schedule.py --out DIR --requests 2000 12000 --passes 2 3 4 --batch 32 128 --seeds 1 2

Each log is another draw than the built-in one (`--log-seed`). Trains in one process, on one thread; the oracle measures alone.
`served / true` is at the reference position, `by position` the same at each logged position, of the shown candidates.
Finished runs are kept, so that it can be stopped and repeated. Writes `results.json` and prints the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from common import describe

from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.simulate.simulate import simulate
from prectr_torchrec.distributed.process import process_group
from prectr_torchrec.evaluation.evaluate import evaluate
from prectr_torchrec.evaluation.part_columns import part_columns
from prectr_torchrec.evaluation.scoring import score
from prectr_torchrec.training.trainer import Trainer

COLUMNS = ("requests", "batch", "passes", "seed", "steps", "shown", "all", "validation NE", "served / true", "by position")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--requests", type=int, nargs="+", default=[2000, 12000])
    parser.add_argument("--passes", nargs="+", default=["auto"], help="numbers, or auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[32], help="requests a step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--log-seed", type=int, default=11)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe("torch", "torchrec", "fbgemm-gpu-cpu"))
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    results = []
    for requests, batch, passes, seed in itertools.product(
        arguments.requests, arguments.batch, arguments.passes, arguments.seeds
    ):
        results.append(run(arguments, requests, batch, passes, seed))
        cells = [results[-1][name] for name in COLUMNS]
        print("| " + " | ".join(f"{c:.4f}" if isinstance(c, float) else str(c) for c in cells) + " |", flush=True)
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def run(arguments: argparse.Namespace, requests: int, batch: int, passes: str, seed: int) -> dict[str, Any]:
    """Trains and measures once, if that has not been done."""
    folder = arguments.out / f"{requests}-{batch}-{passes}-{seed}"
    done = folder / "result.json"
    if done.exists():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    log = arguments.out / f"log-{requests}"
    if not (log / "meta.json").exists():
        simulate(log, requests=requests, seed=arguments.log_seed)
    overrides = [f"batch.requests={batch}", f"batch.candidates={7 * batch}", f"train.seed={seed}", *arguments.set]
    test_from = json.loads((log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
    overrides += [f"train.stages.1.epochs={passes}", f"data.split.test_from={test_from}"]
    config = load_config(arguments.config, overrides)
    samples, candidates = (arguments.out / f"{name}-{requests}" for name in ("samples", "candidates"))
    oracle = log / "eval" / "oracle.parquet"
    prepare(config.data, config.text, log / "raw", samples, progress=False)
    prepare(config.data, config.text, log / "raw", candidates, candidates=oracle, progress=False)
    result = {"requests": requests, "batch": batch, "passes": passes, "seed": seed}
    result |= measure(config, samples, candidates, oracle, folder / "run")
    done.write_text(json.dumps(result), encoding="utf-8")
    return result


def measure(config: RunConfig, samples: Path, candidates: Path, oracle: Path, run: Path) -> dict[str, Any]:
    """Trains, and measures the last checkpoint."""
    found: dict[str, Any] = {}
    with process_group("cpu") as process:
        trainer = Trainer(config, samples, run, process)
        trainer.train()
        for split in (candidates / "candidates", samples / "test"):
            scored = score(run, split.parent, split.name, "last", process)
            measured = evaluate(
                scored.rows,
                settings=config.data,
                parts=part_columns(scored.ranker.reported),
                split=split,
                train=samples / "train",
                predictions=run / f"predictions-{split.name}.parquet",
                oracle=oracle,
            )
            assert measured is not None, "one process is rank 0"
            found[split.name] = measured["oracle"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = found["candidates"]["expected_auc"]
    by_position = [line["calibration"] for line in found["test"]["calibration_by_position"]]
    return {
        "steps": trainer.position["step"],
        "shown": expected["shown"]["model"],
        "all": expected["all"]["model"],
        "validation NE": [line["validation"]["ne"] for line in lines if "validation" in line][-1],
        "served / true": found["candidates"]["calibration"],
        "by position": " ".join(f"{value:.2f}" for value in by_position),
    }


if __name__ == "__main__":
    main()
