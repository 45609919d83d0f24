"""Quality of configurations on a search log with an oracle: the whole job, several seeds, one table.

    python benchmarks/ablation.py --log DIR --out DIR --config prectr_v1 --config prectr_v2 --seeds 1 2 3 --baseline mixed trees

`--config` is a shipped configuration, a file, or an ablation, which is `prectr_v2` with a part changed (`ABLATIONS`).

`--log` is a folder as `prectr simulate` writes it: `raw/`, `eval/oracle.parquet`, `meta.json` with `test_from_timestamp`, and
optionally `eval/judgments_unseen_queries.parquet`. Every step is the command that a user runs. Finished runs are kept, so that
it can be stopped and repeated. Writes `results.json`, `results.md` and `results.png` to `--out`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from common import describe
from matplotlib import pyplot

from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.reads import COUNTED
from prectr_torchrec.data.schema import MANIFEST

ACTIVITY = ("0", "1-19", "20-99", "100+")
HIDDEN = "candidates-grades-hidden"
OWN_COUNTERS = ("user_events", "user_query_events", *(f"user_{what}" for what in COUNTED))

ABLATED = "prectr_v2"
NO_USER_ID = ("tables.user=null", "features.user_id=null")
"""The user-id table learns strictness too and hides the incentive."""
ABLATIONS: dict[str, tuple[str, ...]] = {
    "prectr_v2_debias_noise": ("losses.debias.negatives=noise",),
    "prectr_v2_gate_mlp": ("model.parts.personal.gate=mlp",),
    "prectr_v2_gate_none": ("model.parts.personal.gate=none",),
    "prectr_v2_no_debias": ("losses.debias.weight=0.0",),
    "prectr_v2_no_guards": (
        "losses.anchor.weight=0.0",
        "losses.consistency.weight=0.0",
        "losses.random_negatives.weight=0.0",
        "losses.debias.weight=0.0",
    ),
    "prectr_v2_no_incentive": ("model.parts.personal.incentive=none",),
    "prectr_v2_no_own": ("model.parts.personal.own=false",),
    "prectr_v2_no_peers": ("model.parts.personal.peers=false",),
    "prectr_v2_no_taste": ("model.parts.taste=null",),
    "prectr_v2_no_user_id": NO_USER_ID,
    "prectr_v2_no_user_id_no_incentive": (*NO_USER_ID, "model.parts.personal.incentive=none"),
    "prectr_v2_no_user_id_no_own": (*NO_USER_ID, "model.parts.personal.own=false"),
    "prectr_v2_no_user_id_no_peers": (*NO_USER_ID, "model.parts.personal.peers=false"),
    "prectr_v2_no_user_id_no_taste": (*NO_USER_ID, "model.parts.taste=null"),
    "prectr_v2_shared": ("model.parts.personal.incentive=shared",),
}
"""The overrides of `prectr_v2` that make each ablation of it."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"ablations: {', '.join(ABLATIONS)}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", action="append", required=True, help="or an ablation; the one to compare with first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--baseline", nargs="+", default=[], choices=["mixed", "trees"], help="beside the configurations")
    parser.add_argument("--checkpoint", default="best", help="best by the validation split, or last")
    parser.add_argument("--shuffled", action="store_true", help="also score with the own past of another request: a control")
    parser.add_argument("--relevance", type=Path, action="append", default=[], help="soft grades, as of `prectr prepare`")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every configuration")
    arguments = parser.parse_args()
    machine = describe("torch", "torchrec", "fbgemm-gpu-cpu")
    test_from = json.loads((arguments.log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
    folders = {config: prepare(arguments, config, test_from) for config in arguments.config}
    results = []
    for seed in arguments.seeds:  # seed by seed: a table of all configurations stands as early as possible
        for config in arguments.config:
            results.append({"config": config, "seed": seed, **run(arguments, config, seed, test_from, folders[config])})
            write_results(arguments, machine, results)
        for kind in arguments.baseline:
            results.append({"config": kind, "seed": seed, **run_baseline(arguments, kind, seed, folders[arguments.config[0]])})
            write_results(arguments, machine, results)
    plot(results, [*arguments.config, *arguments.baseline], arguments.out / "results.png")


def resolve(config: str) -> tuple[str, list[str]]:
    """The configuration to load, and the overrides that make it what was asked for."""
    changes = ABLATIONS.get(config)
    return (config, []) if changes is None else (ABLATED, [*changes, f"name={config}"])


def write_results(arguments: argparse.Namespace, machine: str, results: list[dict[str, Any]]) -> None:
    table = format_table(results, [*arguments.config, *arguments.baseline])
    changed = f", with {' '.join(arguments.set)}" if arguments.set else ""
    text = f"{machine}, {arguments.nproc} ranks{changed}\n\n{table}\n"
    (arguments.out / "results.json").write_text(json.dumps({"machine": machine, "runs": results}, indent=1), encoding="utf-8")
    (arguments.out / "results.md").write_text(text, encoding="utf-8")
    print(text, flush=True)


def prepare(arguments: argparse.Namespace, config: str, test_from: int) -> dict[str, Path]:
    """Samples, whole candidate sets of the test requests, and pairs of unseen queries where the log has them.

    Configurations that agree in `data` and in the tokenizer share them.
    """
    name, changes = resolve(config)
    overrides = [*changes, f"data.split.test_from={test_from}", *arguments.set]
    loaded = load_config(name, overrides)
    tokenizer = loaded.text.path or loaded.text.vocab_size
    settings = json.dumps([loaded.data.model_dump(mode="json"), tokenizer, *map(str, arguments.relevance)])
    base = arguments.out / f"data-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    raw, evaluation = arguments.log / "raw", arguments.log / "eval"
    wanted: dict[str, Path | None] = {"samples": None, "candidates": evaluation / "oracle.parquet"}
    unseen = evaluation / "judgments_unseen_queries.parquet"
    wanted |= {"unseen": unseen} if unseen.exists() else {}
    for part, candidates in wanted.items():
        extra = ["--candidates", str(candidates)] if candidates else []
        if part != "unseen":  # no teacher's word where the tower itself is measured
            extra += [word for folder in arguments.relevance for word in ("--relevance", str(folder))]
        prectr(["prepare", "--config", name, "--raw", str(raw), "--out", str(base / part), *extra, *sets(overrides)])
    if arguments.shuffled:
        shuffle_own_past(base / "candidates", base / "shuffled")
    return {part: base / part for part in (*wanted, *["shuffled"] * arguments.shuffled)}


def shuffle_own_past(folder: Path, out: Path) -> None:
    """Copies candidate samples with histories and own counters permuted among the requests."""
    if (out / MANIFEST).exists():
        return
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("*/*.parquet")):
        table = pq.read_table(path)
        order = rng.permutation(table.num_rows)
        for number, name in enumerate(table.column_names):
            if name.startswith("history_") or name in OWN_COUNTERS:
                table = table.set_column(number, table.schema.field(number), table[name].take(order))
        (out / path.parent.name).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, out / path.parent.name / path.name, compression="zstd", row_group_size=1024)
    shutil.copy(folder / MANIFEST, out / MANIFEST)


def run(arguments: argparse.Namespace, config: str, seed: int, test_from: int, folders: dict[str, Path]) -> dict[str, Any]:
    """Trains and evaluates one configuration with one seed, if that has not been done; its figures."""
    directory = arguments.out / "runs" / f"{Path(config).stem}-{seed}"
    done = directory / "quality.json"
    if done.exists():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    nproc = ["--nproc", str(arguments.nproc)]
    name, changes = resolve(config)
    overrides = [*changes, f"data.split.test_from={test_from}", f"train.seed={seed}", *arguments.set]
    command = ["train", "--config", name, "--data", str(folders["samples"]), "--run", str(directory), *nproc]
    train_seconds = prectr([*command, *sets(overrides)])
    measured, evaluate_seconds = {}, 0.0
    for part, folder in {**folders, HIDDEN: folders["candidates"]}.items():
        oracle = ["--oracle", str(arguments.log / "eval" / "oracle.parquet")] if part != "unseen" else []
        oracle += ["--hide-grades"] if part == HIDDEN else []
        target = directory / f"metrics-{part}.json"
        train_data = ["--train-data", str(folders["samples"]), "--metrics", str(target)]
        where = ["--run", str(directory), "--data", str(folder), "--checkpoint", arguments.checkpoint]
        where += ["--predictions", str(directory / f"predictions-{part}.parquet")]
        started = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={arguments.nproc}",
                "-m",
                "prectr_torchrec.evaluation.evaluate",
                "--",
                *where,
                *oracle,
                *train_data,
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            env=threads(arguments.nproc),
        )
        evaluate_seconds += time.perf_counter() - started
        measured[part] = json.loads(target.read_text(encoding="utf-8"))
    figures = {**summary(measured), "train_seconds": train_seconds, "evaluate_seconds": evaluate_seconds}
    done.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def run_baseline(arguments: argparse.Namespace, kind: str, seed: int, folders: dict[str, Path]) -> dict[str, Any]:
    """Fits and measures a baseline on the samples of the first configuration, if that has not been done; its figures."""
    directory = arguments.out / "runs" / f"{kind}-{seed}"
    done = directory / "quality.json"
    if done.exists():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    where = ["--data", str(folders["samples"]), "--run", str(directory), "--set", f"seed={seed}", "--hide-grades"]
    where += ["--score", str(folders["samples"]), "--score", str(folders["candidates"])]
    seconds = prectr(["baseline", kind, *where, "--oracle", str(arguments.log / "eval" / "oracle.parquet")])
    files = {"samples": "test", "candidates": "candidates", HIDDEN: HIDDEN}
    measured = {
        name: json.loads((directory / f"metrics-{file}.json").read_text(encoding="utf-8")) for name, file in files.items()
    }
    figures = {**summary(measured), "train_seconds": seconds, "evaluate_seconds": 0.0}
    done.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """What goes into the table."""
    expected, hidden = (measured[name]["oracle"]["expected_auc"] for name in ("candidates", HIDDEN))
    clicks, position = measured["samples"]["clicks"], measured["samples"]["clicks_at_position"]
    segments, shown_segments = (
        {(s["by"], s["segment"]): s for s in measured[part]["segments"]} for part in ("candidates", "samples")
    )
    figures = {
        "expected AUC, shown": expected["shown"]["model"],
        "expected AUC, all": expected["all"]["model"],
        **{f"grades hidden, {part}": hidden[part]["model"] for part in ("shown", "all")},
        "AUC": clicks["auc"],
        "AUC, position known": position["auc"],
        "GAUC by user": clicks["gauc_user"],
        "GAUC by request": clicks["gauc_request"],
        "normalised entropy": position["normalized_entropy"],
        "calibration": position["calibration"],
    }
    for part in ("shown", "all"):
        of_part = {f"{part}, users of {name}": ("user", name) for name in ACTIVITY} | {
            f"{part}, queries without a past": ("query", "0")
        }
        figures |= {name: segments.get(key, {}).get(f"expected_auc_{part}") for name, key in of_part.items()}
    calibrations = {f"calibration, users of {name}": shown_segments.get(("user", name), {}) for name in ACTIVITY}
    figures |= {name: segment.get("calibration") for name, segment in calibrations.items()}
    figures["rows with levels in order"] = measured["candidates"]["levels_in_order"]
    for kind in ("slope", "rise"):
        slopes = measured["candidates"]["personal"].get(kind, {})
        figures |= {f"{kind} and strictness, users of {n}": slopes.get(n, {}).get("correlation") for n in ("all", *ACTIVITY)}
    if "shuffled" in measured:
        shuffled = measured["shuffled"]["oracle"]["expected_auc"]
        figures |= {f"own past shuffled, {part}": shuffled[part]["model"] for part in ("shown", "all")}
    if "unseen" in measured:
        relevance = measured["unseen"]["relevance"].get("all", {})  # nothing without the anchor
        figures |= {
            f"unseen queries, {key}": relevance.get(key) for key in ("auc", "spearman", "quadratic_kappa", "pair_accuracy")
        }
    figures["true grade, shown"], figures["true grade, all"] = (expected[p]["true_grade"] for p in ("shown", "all"))
    figures["oracle, shown"], figures["oracle, all"] = (expected[p]["oracle"] for p in ("shown", "all"))
    return figures


def format_table(results: list[dict[str, Any]], configs: list[str]) -> str:
    """Mean over seeds and half the range between the extremes, a column a configuration."""
    names = [name for name in results[0] if name not in ("config", "seed")]
    lines = ["| figure | " + " | ".join(Path(c).stem for c in configs) + " |", "|---|" + "---|" * len(configs)]
    for name in names:
        cells = []
        for config in configs:
            values = [r[name] for r in results if r["config"] == config and r.get(name) is not None]
            spread = f" ± {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}" if values else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], configs: list[str], path: Path) -> None:
    """Expected AUC, shown and all: a dot a seed, a bar at the mean."""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 1 + 0.35 * len(configs)), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("expected AUC, shown", "expected AUC, all"), strict=True):
        for place, config in enumerate(configs):
            values = [r[name] for r in results if r["config"] == config]
            axis.plot(values, [place] * len(values), "o", alpha=0.5)
            axis.plot([statistics.mean(values)], [place], "k|", markersize=14)
        axis.set_title(name)
    axes[0].set_yticks(range(len(configs)), [Path(config).stem for config in configs])
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def prectr(arguments: list[str]) -> float:
    """Runs a `prectr` command; its seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "prectr_torchrec.cli", *arguments], check=True, env=threads(1))
    return time.perf_counter() - started


def threads(nproc: int) -> dict[str, str]:
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **({"OMP_NUM_THREADS": "1"} if nproc > 1 else {})}


def sets(overrides: list[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


if __name__ == "__main__":
    main()
