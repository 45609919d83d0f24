"""The `evaluate` job: scores a split on every rank, keeps the predictions, and measures them overall and by segment.

    torchrun --nproc-per-node 2 -m prectr_torchrec.training.evaluate -- --run DIR --data DIR [--split test] [--oracle FILE]

Leaves `predictions-<split>.parquet` and `metrics-<split>.json` in the run directory and prints the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from tqdm import tqdm

from prectr_torchrec.config import Levels, RunConfig
from prectr_torchrec.data.schema import MANIFEST
from prectr_torchrec.distributed.process import process_group, run_rank
from prectr_torchrec.runs import load_run
from prectr_torchrec.training import metrics as m
from prectr_torchrec.training import predictions as p
from prectr_torchrec.training.files import replace_text
from prectr_torchrec.training.personal import personal_measures
from prectr_torchrec.training.scoring import default_split, score

ACTIVITY = {"0": (0, 0), "1-19": (1, 19), "20-99": (20, 99), "100+": (100, np.inf)}
"""Segments by a user's training impressions, both ends included."""
NO_SEGMENTS = "segments are left out: the data folder has no train split; name a prepared folder that has it with --train-data"


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the job on this rank; `argv` as on the command line."""
    arguments = _parse(argv)
    run, data = arguments.run, arguments.data
    config = load_run(run)
    split = arguments.split or default_split(data)
    train = (arguments.train_data or data) / "train"
    _check_inputs(data / split, train if arguments.train_data else None, arguments.oracle)
    with process_group(config.train.device) as process:
        measured = evaluate(
            score(run, data, split, arguments.checkpoint, process),
            config=config,
            split=data / split,
            train=train,
            predictions=arguments.predictions or run / f"predictions-{split}.parquet",
            oracle=arguments.oracle,
            rank=process.rank,
            world_size=process.world_size,
        )
    if measured is not None:
        measured = {"run": config.name, "checkpoint": arguments.checkpoint, **measured}
        output = arguments.metrics or run / f"metrics-{split}.json"
        write_json(measured, output)
        print(format_metrics(measured))
        print(f"predictions: {arguments.predictions or run / f'predictions-{split}.parquet'}\nmetrics: {output}")


def evaluate(
    rows: Iterable[p.Rows],
    *,
    config: RunConfig,
    split: Path,
    train: Path,
    predictions: Path,
    oracle: Path | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, Any] | None:
    """Writes the predictions of all ranks to one file and measures them; every rank of the process group calls it.

    Args:
        rows: this rank's scored batches (`predictions.Rows`).
        config: the run's; its levels and its memory bound are used.
        split: folder of the samples that are scored.
        train: folder of the training samples, for the segments; may be missing.
        predictions: the Parquet file to write, on a file system that all ranks see.
        oracle: Parquet with request_id, item_id, probability and optionally exposed, relevance and user_strictness.

    Returns:
        The metrics on rank 0, None on the others.

    Raises:
        ValueError: a file that cannot be used, or predictions that are not finite.
    """
    predictions.parent.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        shutil.rmtree(p.parts_folder(predictions), ignore_errors=True)
    _barrier(world_size)
    p.write_part(_with_progress(rows, rank), predictions, rank, p.part_columns(config.model))
    _barrier(world_size)
    if rank != 0:
        return None
    p.merge_parts(predictions, split, world_size, config.data.memory)
    measured = measure(predictions, split=split, train=train, oracle=oracle, levels=config.data.levels, memory=config.data.memory)
    if config.objective.anchor == 0:  # the relevance tower has learned nothing: its figures would say nothing
        measured["relevance"] = {}
    return measured


def measure(predictions: Path, *, split: Path, train: Path, oracle: Path | None, levels: Levels, memory: str) -> dict[str, Any]:
    """All measures of a predictions file, ready for JSON; None stands where the data cannot carry one."""
    table = p.load_table(predictions, train, oracle, memory)
    manifest = split.parent / MANIFEST
    everything = np.ones(len(table.request_id), dtype=bool)
    click_args = (table.click, table.user_id, table.request_id)
    known = ~np.isnan(table.click)
    segments = list(_segments(table)) if table.has_training else []
    return {
        "split": split.name,
        "simulated": bool(json.loads(manifest.read_text()).get("simulated", False)) if manifest.is_file() else False,
        "rows": len(table.request_id),
        "requests": len(np.unique(table.request_id)),
        "clicks": m.click_metrics(table.click_probability, *click_args),
        "clicks_at_position": m.click_metrics(table.click_probability_at_position, *click_args),
        "grades": m.grade_ndcg(table.click_probability, table.relevance, table.request_id, levels.grade_min),
        "relevance": _relevance(p.load_graded_pairs(predictions, train, memory), levels, table.has_training),
        "levels_in_order": float(order.mean()) if (order := table.by_part.get("levels_in_order")) is not None else None,
        "oracle": _against_oracle(table, everything),
        "segments": [{"by": by, "segment": name, **_segment(table, mask)} for by, name, mask in segments],
        "personal": personal_measures(table, levels, {name: mask for by, name, mask in segments if by == "user"}),
        "reliability": m.reliability(table.click_probability_at_position[known], table.click[known]),
    }


def write_json(measured: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(measured, indent=1, allow_nan=False) + "\n")


def format_metrics(measured: dict[str, Any]) -> str:
    """The metrics as an aligned table of plain text."""
    simulated = ", simulated data" if measured["simulated"] else ""
    lines = [f"{measured['run']} on {measured['split']}: {measured['rows']:,} rows, {measured['requests']:,} requests{simulated}"]
    click, position = measured["clicks"], measured["clicks_at_position"]
    body = [[name, _number(click[name]), _number(position[name])] for name in click]
    lines += ["", *aligned([["logged clicks", "at reference position", "at logged position"], *body])]
    body = [[name, _number(value)] for name, value in measured["grades"].items()]
    lines += ["", *aligned([["final ranking against grades", ""], *body])]
    if relevance := measured["relevance"]:
        body = [[name, *(_number(part[name]) for part in relevance.values())] for name in relevance["all"]]
        lines += ["", *aligned([["relevance tower against grades", *(f"{name} pairs" for name in relevance)], *body])]
    if measured["levels_in_order"] is not None:
        lines += ["", f"clicks rise with the level on {measured['levels_in_order']:.2%} of rows"]
    if measured["oracle"]:
        lines += ["", *_oracle_lines(measured["oracle"])]
    columns = ["rows", "auc", "gauc_request", "normalized_entropy", "calibration", "expected_auc_shown", "expected_auc_all"]
    body = [[f"{s['by']} {s['segment']}", *(_number(s[c]) for c in columns)] for s in measured["segments"]]
    lines += ["", *(aligned([["training impressions", *columns], *body]) if body else [NO_SEGMENTS])]
    return "\n".join(lines)


def _check_inputs(split: Path, train: Path | None, oracle: Path | None) -> None:
    """Finds what is missing before hours of scoring."""
    p.sample_files(split)
    if train:
        p.sample_files(train)
    if oracle:
        p.oracle_columns(oracle)


def _oracle_lines(oracle: dict[str, Any]) -> list[str]:
    parts = ("shown", "all")
    body = [[name, *(_number(oracle["expected_auc"][part][name]) for part in parts)] for name in oracle["expected_auc"]["all"]]
    return [
        *aligned([["expected AUC (oracle)", *parts], *body]),
        f"oracle: {oracle['rows']:,} rows, {oracle['unmatched_rows']:,} of them not predicted",
        f"predictions that it lacks: {oracle['unmatched_predictions']:,}",
        "AUC on logged clicks: " + ", ".join(f"{name} {_number(value)}" for name, value in oracle["logged_auc"].items()),
        f"mean prediction / mean true probability on shown rows: {_number(oracle['calibration'])}",
    ]


def _relevance(pairs: p.GradedPairs, levels: Levels, has_training: bool) -> dict[str, m.Metrics]:
    def of(mask: m.Array) -> m.Metrics:
        return m.relevance_metrics(
            pairs.relevance_probabilities.reshape(-1, levels.count)[mask],
            pairs.relevance[mask],
            pairs.query_id[mask],
            boundaries=levels.boundaries,
            level_grades=levels.grades,
        )

    everything = np.ones(len(pairs.query_id), dtype=bool)
    return {"all": of(everything), **({"new query": of(pairs.query_impressions == 0)} if has_training else {})}


def _against_oracle(table: p.Table, mask: m.Array) -> dict[str, Any] | None:
    oracle = table.oracle
    if oracle is None:
        return None
    joined = ~np.isnan(oracle.probability)
    shown = joined & (oracle.exposed == 1)
    labelled = joined & ~np.isnan(table.click)
    return {
        "rows": oracle.rows,
        "unmatched_rows": oracle.unmatched,
        "unmatched_shown_rows": oracle.unmatched_exposed,
        "unmatched_predictions": int((~joined).sum()),
        "expected_auc": {"shown": _expected_auc(table, shown), "all": _expected_auc(table, joined & _whole_sets(oracle))},
        "logged_auc": {
            "true_grade": _grade_auc(oracle.relevance[labelled], table.click[labelled]),
            "oracle": m.auc(oracle.probability[labelled], table.click[labelled]),
        },
        "calibration": m.calibration(table.click_probability[shown], oracle.probability[shown]),
    }


def _expected_auc(table: p.Table, mask: m.Array) -> m.Metrics:
    assert table.oracle is not None
    probability = table.oracle.probability[mask]
    model, best = m.auc(table.click_probability[mask], probability), m.auc(probability, probability)
    grade = _grade_auc(table.oracle.relevance[mask], probability)
    return {
        "rows": len(probability),
        "true_grade": grade,
        "model": model,
        "oracle": best,
        "share_of_the_way": m.share_of_the_way(model, grade, best),
    }


def _grade_auc(grade: m.Array, label: m.Array) -> float | None:
    return None if np.isnan(grade).any() else m.auc(grade, label)


def _whole_sets(oracle: p.Oracle) -> m.Array:
    """Every row, or none where no unexposed candidate is predicted: figures on shown rows must not pass for figures on all."""
    unexposed = ~np.isnan(oracle.probability) & (oracle.exposed != 1)
    return np.full(len(unexposed), unexposed.any() or oracle.unmatched == 0)


def _segments(table: p.Table) -> Iterator[tuple[str, str, m.Array]]:
    for name, (low, high) in ACTIVITY.items():
        yield "user", name, (table.user_impressions >= low) & (table.user_impressions <= high)
    for by, impressions in (("query", table.query_impressions), ("item", table.item_impressions)):
        yield by, "new", impressions == 0
        yield by, "known", impressions > 0


def _segment(table: p.Table, mask: m.Array) -> m.Metrics:
    """Ranking measured at the reference position, probabilities at the logged one, where the clicks come from."""
    labels = (table.click[mask], table.user_id[mask], table.request_id[mask])
    result = m.click_metrics(table.click_probability[mask], *labels)
    logged = m.click_metrics(table.click_probability_at_position[mask], *labels)
    result |= {name: logged[name] for name in ("normalized_entropy", "log_loss", "calibration")}
    expected: dict[str, float | None] = {"expected_auc_shown": None, "expected_auc_all": None}
    if table.oracle is not None:
        joined = mask & ~np.isnan(table.oracle.probability)
        subsets = {"shown": joined & (table.oracle.exposed == 1), "all": joined & _whole_sets(table.oracle)}
        for part, rows in subsets.items():
            expected[f"expected_auc_{part}"] = m.auc(table.click_probability[rows], table.oracle.probability[rows])
    return {**result, **expected}


def _with_progress(rows: Iterable[p.Rows], rank: int) -> Iterator[p.Rows]:
    with tqdm(desc="scoring", unit=" rows", unit_scale=True, disable=None if rank == 0 else True) as bar:
        for batch in rows:
            yield batch
            bar.update(len(batch["request_id"]))


def _barrier(world_size: int) -> None:
    if world_size > 1:
        dist.barrier()


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def aligned(rows: list[list[str]], left: int = 1) -> list[str]:
    """The first `left` columns to the left, the others to the right, under a rule."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    sides = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    lines = ["  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * sum(widths, 2 * (len(widths) - 1)), *lines[1:]]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prectr evaluate", description="Scores a split with a trained run and measures it.")
    parser.add_argument("--run", type=Path, required=True, help="run directory")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder with the split")
    parser.add_argument("--split", help="default: test, or candidates where there is no test")
    parser.add_argument("--checkpoint", default="best", help="best, last, or the name of one that is kept")
    parser.add_argument("--predictions", type=Path, help="Parquet file to write; default: predictions-<split>.parquet in the run")
    parser.add_argument("--metrics", type=Path, help="JSON file to write; default: metrics-<split>.json in the run")
    optional = ", ".join(p.ORACLE_OPTIONAL)
    parser.add_argument("--oracle", type=Path, help=f"Parquet with request_id, item_id, probability[, {optional}]")
    parser.add_argument("--train-data", type=Path, help="prepared folder whose train split defines the segments; default: --data")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_rank(main)
