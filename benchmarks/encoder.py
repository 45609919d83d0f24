"""What distillation buys: the teacher, its students, and what stands without either, on queries that none of them saw.

    python benchmarks/encoder.py --pairs FILE --teacher-scores DIR --graded FILE --out DIR --config student --seeds 1 2 3

`--pairs` and `--teacher-scores` are what `prectr pairs` and `prectr teach` wrote; `--graded` has `query_id, item_id, relevance`
of pairs that are among them (`prectr pairs --candidates FILE --test-queries FILE` sees to it, and keeps their queries out of
training). Every student is the command that a user runs. Finished ones are kept, so that it can be stopped and repeated. With
`--teacher` the teacher itself is timed. Writes `results.json` and `results.md` to `--out`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import describe
from numpy.typing import NDArray

from prectr_torchrec.config.run import RunConfig
from prectr_torchrec.data.pairs.pairs import PairsFile
from prectr_torchrec.data.teacher_scores import read_teacher_scores
from prectr_torchrec.metrics import relevance_metrics
from prectr_torchrec.modules import TextRelevance
from prectr_torchrec.text.build import build_relevance
from prectr_torchrec.text.distill import MANIFEST
from prectr_torchrec.text.distiller import StudentTask, Targets
from prectr_torchrec.text.pair_data import PairData, teacher_rows, teacher_targets
from prectr_torchrec.text.student import predict_relevance, student_config

NGRAMS = "text.encoder={model_type: ngram, rows: 30000, embedding_dim: 64, hidden: [256, 128]}"
ALONE, MATCH = ["model.match=false"], ["model.match=true"]
STUDENTS: dict[str, list[str]] = {
    **{kind: [f"text.interaction={kind}", *ALONE] for kind in ("cross", "late", "dual")},
    "BERT2DNN": ["text.interaction=dual", NGRAMS, *ALONE],
    **{f"{kind} + match": [f"text.interaction={kind}", *MATCH] for kind in ("cross", "late", "dual")},
    "BERT2DNN + match": ["text.interaction=dual", NGRAMS, *MATCH],
    "match alone": ["model.text=false", *MATCH],
}
"""Name -> settings; those with "without teacher" behind the name have no soft grades."""
WITHOUT = " without teacher"
FIGURES = ("spearman", "auc", "pair_accuracy")
CANDIDATES = 200


class Graded(NamedTuple):
    """The pairs to judge on."""

    pairs: pa.Table
    boundaries: list[float]
    level_grades: NDArray[np.float64]

    def measure(self, probabilities: NDArray[np.float32], level_grades: NDArray[np.float64] | None = None) -> dict[str, Any]:
        return relevance_metrics(
            probabilities,
            self.pairs["relevance"].to_numpy(),
            self.pairs["query_id"].to_numpy(),
            boundaries=self.boundaries,
            level_grades=self.level_grades if level_grades is None else level_grades,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--teacher-scores", type=Path, required=True)
    parser.add_argument("--graded", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="folder of the teacher, to count its parameters and time it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="student")
    parser.add_argument("--students", nargs="+", default=[*STUDENTS, f"cross + match{WITHOUT}", f"cross{WITHOUT}"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--nproc", type=int, default=1, help="ranks that distil; `distill.batch_size` is of each")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every student")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe("torch", "transformers")
    graded = graded_pairs(arguments)
    rows: dict[str, list[dict[str, Any]]] = {"teacher": [teacher(arguments, graded)], "token overlap": [overlap(graded)]}
    for seed in arguments.seeds:  # seed by seed: a table of all students stands as early as possible
        for name in arguments.students:
            rows.setdefault(name, []).append(student(arguments, name, seed, graded))
            write(arguments.out, machine, rows, graded)


def graded_pairs(arguments: argparse.Namespace) -> Graded:
    """The pairs of the file that the graded file has, with its grades."""
    source = PairsFile.open(arguments.pairs)
    pairs, given = source.read(), pq.read_table(arguments.graded, columns=["query_id", "item_id", "relevance"])
    row = teacher_rows(pairs, given)
    kept = np.flatnonzero(row >= 0)
    splits = set(pairs["split"].take(kept).to_pylist())
    if len(kept) < len(given) or splits != {"test"}:
        raise ValueError(
            f"{len(kept)} of {len(given)} graded pairs are in {arguments.pairs}, in splits {splits}; all must be test"
        )
    grades = given["relevance"].take(row[kept]).cast(pa.float32())
    place = pairs.schema.get_field_index("relevance")
    return Graded(pairs.take(kept).set_column(place, "relevance", grades), source.levels.boundaries, source.level_grades())


def teacher(arguments: argparse.Namespace, graded: Graded) -> dict[str, Any]:
    probabilities, _ = teacher_targets(graded.pairs, read_teacher_scores([arguments.teacher_scores]))
    found = graded.measure(probabilities)
    if arguments.teacher is None:
        return found
    from prectr_torchrec.text.teacher import load_teacher

    loaded = load_teacher(arguments.teacher, len(graded.level_grades))
    texts = [graded.pairs[name].slice(0, 512).to_pylist() for name in ("query", "title")]
    found["pairs_per_second"] = 512 / seconds(lambda: loaded.grade(*texts, hidden=False), repeats=3)
    return found | {"parameters": sum(p.numel() for p in loaded.model.parameters())}


def overlap(graded: Graded) -> dict[str, Any]:
    """The share of the query's words that the title has, as a grade."""
    texts = zip(*(graded.pairs[name].to_pylist() for name in ("query", "title")), strict=True)
    words = ((set(re.findall(r"\w+", query.lower())), set(re.findall(r"\w+", title.lower()))) for query, title in texts)
    share = np.array([len(query & title) / max(len(query), 1) for query, title in words], dtype=np.float32)
    levels = len(graded.level_grades)
    ends = np.zeros((len(share), levels), dtype=np.float32)
    ends[:, 0], ends[:, -1] = 1 - share, share
    return graded.measure(ends)


def student(arguments: argparse.Namespace, name: str, seed: int, graded: Graded) -> dict[str, Any]:
    """Distils a student, if that has not been done, and measures it."""
    folder = arguments.out / f"{name.replace(' ', '_')}-{seed}"
    sets = [*STUDENTS[name.removesuffix(WITHOUT)], f"distill.seed={seed}", *arguments.set]
    command = [sys.executable, "-m", "prectr_torchrec.cli", "distill", "--config", arguments.config]
    command += ["--pairs", str(arguments.pairs), "--out", str(folder), "--nproc", str(arguments.nproc)]
    command += [word for setting in sets for word in ("--set", setting)]
    if not name.endswith(WITHOUT):
        command += ["--teacher-scores", str(arguments.teacher_scores)]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    cached = folder / "benchmark.json"
    if not cached.exists():
        cached.write_text(json.dumps(measure(folder, graded) | {"seconds": round(time.perf_counter() - began)}), encoding="utf-8")
    return dict(json.loads(cached.read_text(encoding="utf-8")))


def measure(folder: Path, graded: Graded) -> dict[str, Any]:
    about, config = json.loads((folder / MANIFEST).read_text(encoding="utf-8")), student_config(folder)
    relevance = build_relevance(config, folder).eval()
    data = PairData(graded.pairs, folder, config.text.query_tokens, config.text.title_tokens)
    batches = [data.batch(rows) for rows in np.array_split(np.arange(len(data)), max(len(data) // 512, 1))]
    with torch.no_grad():
        probabilities = torch.cat([predict_relevance(relevance, batch).log_pi.exp() for batch in batches]).numpy()
        timed = batches[:8]
        rate = sum(len(b.query_index) for b in timed) / seconds(
            lambda: [predict_relevance(relevance, b) for b in timed], repeats=3
        )
        costs = request_costs(relevance, data, config)
    found = graded.measure(probabilities, np.array(about["level_grades"]))
    costs |= {f"trained_{precision}": training_rate(config, folder, data, precision) for precision in ("fp32", "bf16")}
    return found | costs | {"pairs_per_second": rate, "parameters": about["parameters"], "validation": about["measures"]}


def training_rate(config: RunConfig, folder: Path, data: PairData, precision: str) -> float:
    """Pairs a second of a training step, by `text.precision`."""
    text = config.text.model_copy(update={"precision": precision, "path": None})
    task = StudentTask(build_relevance(config.model_copy(update={"text": text}), folder), config.distill, teaching=True).train()
    optimizer = torch.optim.AdamW(task.parameters(), fused=True)
    size, levels = min(config.distill.batch_size, len(data)), config.data.levels.count
    even = torch.full((size, levels), 1 / levels)
    rows = np.random.default_rng(0).permutation(len(data))[:size]

    def step() -> None:
        optimizer.zero_grad()
        task(data.batch(rows), Targets(even, even, None))["loss"].backward()
        optimizer.step()

    return size / seconds(step, repeats=9)


def request_costs(relevance: TextRelevance, data: PairData, config: RunConfig) -> dict[str, float]:
    """Title vectors a second, and milliseconds of a request of 200 candidates, titles kept where they can be."""
    batch = data.batch(np.arange(min(len(data), 4 * CANDIDATES)))
    titles = batch.title_tokens[:CANDIDATES].repeat(-(-CANDIDATES // len(batch.title_tokens)), 1)[:CANDIDATES]
    query = batch.query_tokens[:1]
    kept = relevance.encode(titles)

    def request() -> Any:
        asked = relevance.encode(query)
        pair = relevance.pair(asked.expand(CANDIDATES, *asked.shape[1:]), kept)
        return relevance(pair, relevance.match_features(query.expand(CANDIDATES, -1), titles))

    costs = {"request_ms": 1e3 * seconds(request, repeats=9)}
    if config.model.text and config.text.interaction != "cross":
        costs["titles_per_second"] = len(titles) / seconds(lambda: relevance.encode(titles), repeats=9)
    return costs


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The median of several runs, after one to warm up, by the processor's clock: other programs disturb it less."""
    work()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def write(out: Path, machine: str, rows: dict[str, list[dict[str, Any]]], graded: Graded) -> None:
    counted = f"{graded.pairs.num_rows:,} graded pairs of {len(graded.pairs['query_id'].unique()):,} unseen queries"
    lines = [f"{machine}, one thread", "", f"{counted}; mean ± standard deviation over seeds", ""]
    columns = ["", "parameters", "Spearman", "AUC", "pair accuracy", "of the teacher's AUC above chance"]
    columns += ["pairs/s", "titles/s", "200 candidates, ms", "trained pairs/s, fp32", "bf16"]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    best = rows["teacher"][0]["auc"]
    for name, runs in rows.items():
        kept = [(run["auc"] - 0.5) / (best - 0.5) for run in runs]
        cells = [name, _whole(runs, "parameters"), *(_spread([run[figure] for run in runs]) for figure in FIGURES), _spread(kept)]
        cells += [_whole(runs, "pairs_per_second"), _whole(runs, "titles_per_second"), _whole(runs, "request_ms", 1)]
        cells += [_whole(runs, "trained_fp32"), _whole(runs, "trained_bf16")]
        lines.append(f"| {' | '.join(cells)} |")
    (out / "results.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1), encoding="utf-8")
    (out / "results.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines), flush=True)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def _whole(runs: list[dict[str, Any]], key: str, digits: int = 0) -> str:
    return f"{statistics.median(run[key] for run in runs):,.{digits}f}" if key in runs[0] else ""


if __name__ == "__main__":
    main()
