"""The `importance` job: what each column that a run reads is worth to it.

    torchrun --nproc-per-node 2 -m prectr_torchrec.evaluation.importance -- --run DIR --data DIR [--split test]

Each column is exchanged at random among the requests, or the candidates, of a batch, all others as they are. What the AUC of the
clicks loses by it is the column's importance (Breiman, Random Forests, 2001). Leaves `importance-<split>.json` in the run.
Columns that say alike stand in for each other: each then has less than both have together.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from prectr_torchrec import metrics as m
from prectr_torchrec.data.reader.batch import SearchBatch
from prectr_torchrec.distributed.process import Process, process_group, run_rank
from prectr_torchrec.evaluation.bootstrap import Array, Measure, auc, paired_differences
from prectr_torchrec.evaluation.measures_text import aligned, interval, number
from prectr_torchrec.evaluation.permuted_columns import columns_of, permuted
from prectr_torchrec.evaluation.scoring import default_split, open_split, scoring_parser
from prectr_torchrec.modules import Inputs, RankingModel
from prectr_torchrec.runs.layout import load_run
from prectr_torchrec.runs.workspace import write_json
from prectr_torchrec.system.paths import check_arguments, unambiguous


class Rows(NamedTuple):
    """Rows with a click label."""

    request: Array
    """(n,) int64 ids."""
    click: Array
    """(n,) 0 or 1."""
    logits: dict[str, Array]
    """(n,) by column, that column exchanged; "" is as the samples have all."""


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the job on this rank; `argv` as on the command line."""
    arguments = _parse(argv)
    run, data = arguments.run, arguments.data
    config = load_run(run)
    split = arguments.split or default_split(data)
    with process_group(config.train.device) as process:
        rows = gathered(score_permuted(run, data, split, arguments.checkpoint, process, seed=arguments.seed), process)
    if rows is not None:
        found = {"run": config.name, "checkpoint": arguments.checkpoint, "split": split, **importance(rows)}
        output = arguments.out or run / f"importance-{split}.json"
        write_json(found, output)
        print(format_importance(found))
        print(f"importance: {output}")


def score_permuted(run: Path, data: Path, split: str, checkpoint: str, process: Process, *, seed: int = 0) -> Rows:
    """Scores this rank's share of a split, and again with each column exchanged; collective.

    Args:
        run: run directory.
        data: prepared folder.
        split: its split.
        checkpoint: as of `runs.checkpoint_path`.
        process: this rank.
        seed: of the exchanges.

    Raises:
        ValueError: batches of one request, within which nothing can be exchanged.
    """
    if load_run(run).batch.requests < 2:
        raise ValueError(
            f"{run}: batch.requests is 1, and columns are exchanged among the requests of a batch; train with 2 or more"
        )
    config, model, batches = open_split(run, data, split, checkpoint, process)
    ranker: RankingModel = model.module.model
    seen: list[Inputs] = []
    hook = ranker.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    collected: list[Rows] = []
    for batch, _ in batches:
        inputs = seen.pop()
        logits = {"": _logits(ranker, inputs)}
        for name, column in columns_of(inputs, config.features).items():
            at = zlib.crc32(f"{seed} {process.rank} {len(collected)} {name}".encode())
            logits[name] = _logits(ranker, permuted(inputs, column, torch.Generator().manual_seed(at)))
        collected.append(_labelled(batch, logits))
    hook.remove()
    return _joined(collected)


def importance(rows: Rows, seed: int = 0) -> dict[str, Any]:
    """Measures what exchanged columns lose.

    Args:
        rows: of all ranks.
        seed: of the resampling.

    Returns:
        `rows`, `requests`, `auc`, and `columns`: by name, the most important first, `auc` with the column exchanged, `loss`, and
        its 95 % `interval`, by request. All are None where the clicks are of one class.
    """
    request, score = m.dense(rows.request), {name: logit.astype(np.float64) for name, logit in rows.logits.items()}
    measures: dict[str, Measure] = {name: auc(z, rows.click, 1 - rows.click, request) for name, z in score.items()}
    whole = measures.pop("")
    requests = int(request.max()) + 1 if len(request) else 0
    differences = paired_differences(dict.fromkeys(measures, whole), measures, requests=requests, seed=seed)
    columns = {
        name: {"auc": d.second if d.difference is not None else None, "loss": d.difference, "interval": d.interval}
        for name, d in sorted(differences.items(), key=lambda item: -(item[1].difference or 0.0))
    }
    value = whole(np.ones(requests))
    return {"rows": len(request), "requests": requests, "auc": value if np.isfinite(value) else None, "columns": columns}


def format_importance(found: Mapping[str, Any]) -> str:
    """The table that the command prints."""
    head = f"AUC of {found['rows']:,} labelled candidates of {found['requests']:,} requests: {number(found['auc'])}"
    body = [[name, number(c["auc"]), number(c["loss"]), interval(c["interval"])] for name, c in found["columns"].items()]
    return "\n".join([head, "", *aligned([["column exchanged", "AUC", "loss", "95 % interval"], *body])])


def gathered(rows: Rows, process: Process) -> Rows | None:
    """The rows of all ranks on rank 0, None on the others; collective."""
    if process.world_size == 1:
        return rows
    parts: list[Rows] | None = [rows] * process.world_size if process.rank == 0 else None
    dist.gather_object(rows, parts)
    return _joined(parts) if parts is not None else None


def _logits(ranker: RankingModel, inputs: Inputs) -> torch.Tensor:
    """By `forward` itself, past the hook."""
    return ranker.forward(inputs).ranking["click"].logit


def _labelled(batch: SearchBatch, logits: Mapping[str, torch.Tensor]) -> Rows:
    click, weight, _ = batch.labels()["click"]
    kept = weight > 0
    request = batch["request_id"][batch.candidate_request]
    values = {name: logit[kept].cpu().numpy() for name, logit in logits.items()}
    return Rows(request[kept].cpu().numpy(), click[kept].cpu().numpy(), values)


def _joined(parts: Sequence[Rows]) -> Rows:
    request, click = (np.concatenate([getattr(part, name) for part in parts]) for name in ("request", "click"))
    return Rows(request, click, {name: np.concatenate([part.logits[name] for part in parts]) for name in parts[0].logits})


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = scoring_parser("importance", "Measures what each column is worth to a run.")
    parser.add_argument("--out", type=unambiguous, help="JSON file to write; default: importance-<split>.json in the run")
    parser.add_argument("--seed", type=int, default=0, help="of the exchanges")
    check_arguments(argv)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_rank(main)
