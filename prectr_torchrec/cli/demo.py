"""The main job on a simulated log, start to finish: `prectr demo`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from prectr_torchrec.baselines.run import Kind, run_baseline
from prectr_torchrec.config.data import DataConfig
from prectr_torchrec.config.files import load_config
from prectr_torchrec.config.text import PairsConfig
from prectr_torchrec.data.pairs.pairs import PairsFile, write_pairs
from prectr_torchrec.data.prepare.prepare import prepare
from prectr_torchrec.data.simulate.simulate import simulate
from prectr_torchrec.data.tokenizer import load_tokenizer, train_tokenizer
from prectr_torchrec.distributed.process import quiet_transformers
from prectr_torchrec.evaluation.effect_sums import write_effects
from prectr_torchrec.evaluation.predictions import HIDDEN
from prectr_torchrec.evaluation.report import write_report
from prectr_torchrec.runs.workspace import build_if_absent
from prectr_torchrec.system.locks import writes_folder
from prectr_torchrec.system.paths import only_local
from prectr_torchrec.text.tune import tune_teacher, tuning_config
from prectr_torchrec.training.fuse import main as fuse

RUNS = {"prectr_v2": "demo", "prectr_v1": "demo_v1", "din": "demo_din", "dnn": "demo_dnn"}
"""Name in the report -> shipped configuration."""
WITH_TEXT = ("prectr_v2", "prectr_v1")
RANKS = 2
TEACHER = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
}
"""The teacher's encoder: where no large model can be had, a BERT that begins from nothing."""
VERDICT = "NDCG@10, 95 % interval"
"""In the line of an evaluation that the demo shows."""
LAST_LINES = 40
"""Of a job that failed."""
TUNING = ["lr=5e-4", "epochs=6", "batch_size=64", "patience=4"]


@only_local
@writes_folder("out")
def demo(out: Path) -> None:
    """Simulates a log, teaches and distils a text encoder, prepares samples, trains PRECTR-V2, V1, DIN, DNN and mixed effects on
    two ranks through TorchX, fuses V2 with the effects, fits boosted trees and a regression, evaluates, reports.

    Finished steps are skipped, so that repeating it is quick.

    Args:
        out: folder of everything it writes.

    Raises:
        RuntimeError: a job failed.
    """
    log, samples, candidates, report = out / "log", out / "samples", out / "candidates", out / "report.html"
    _say(f"1/8  simulated search log -> {log}")
    if not (log / "meta.json").exists():
        simulate(log)
    config, oracle = load_config(RUNS["prectr_v2"]), log / "eval" / "oracle.parquet"
    config.data.split.test_from = json.loads((log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
    student = distil(out, config.data, config.pairs, config.text.vocab_size)
    config.text.path = str(student)  # whose vocabulary the samples are made for
    _say(f"4/8  samples -> {samples}, whole candidate sets of the test requests -> {candidates}")
    prepare(config.data, config.text, log / "raw", samples)
    prepare(config.data, config.text, log / "raw", candidates, candidates=oracle)
    runs = {name: out / "runs" / name for name in RUNS}
    for name, run in runs.items():
        text = ("--", f"--set=text.path={student.absolute()}") if name in WITH_TEXT else ()
        _train(out, name, RUNS[name], samples, run, *text)
        _evaluate(out, name, run, samples, candidates, oracle)
    fused = with_effects(out, runs["prectr_v2"], samples, candidates, oracle, lengths(config.data))
    runs = {"prectr_v2 with effects": fused, **runs}
    runs |= baselines(out, samples, candidates, oracle)
    _say(f"8/8  report -> {report}")
    write_report(report, runs, title="PRECTR on a simulated search log")
    _say(f"done: open {report}; curves: tensorboard --logdir {out / 'runs'}")


def lengths(data: DataConfig) -> list[str]:
    """Settings of a ranker that is not of the demo's size, so that it reads the demo's samples."""
    return [f"--set=data.{name}={getattr(data, name)}" for name in ("history_length", "peer_length")]


def with_effects(out: Path, ranker: Path, samples: Path, candidates: Path, oracle: Path, settings: Sequence[str] = ()) -> Path:
    """The run of a ranker fused with mixed effects, which infer each user from their past events; `settings`: of the samples."""
    mixed, fused = (out / "runs" / name for name in ("mixed_effects", "fused"))
    if (fused / "metrics-candidates.json").exists():
        return fused
    _train(out, "mixed effects", "mixed", samples, mixed, "--", *settings)
    with_sums = [out / f"{folder.name}_effects" for folder in (samples, candidates)]
    _say(f"6/8  sums over each user's past events -> {', '.join(map(str, with_sums))}; both rankers in one -> {fused}")
    for folder, written in zip((samples, candidates), with_sums, strict=True):
        if not written.exists():
            write_effects(mixed, folder, written, events=samples)
    if not (fused / "checkpoints" / "index.json").exists():
        fuse(["--member", str(ranker), "--member", str(mixed), "--data", str(with_sums[0]), "--run", str(fused)])
    _evaluate(out, "both in one", fused, with_sums[0], with_sums[1], oracle)
    return fused


def _train(out: Path, name: str, config: str, samples: Path, run: Path, *text: str) -> None:
    _say(f"5/8  train {name} on {RANKS} ranks through TorchX -> {run}")
    if not (run / "metrics-candidates.json").exists():
        _torchx(out, "prectr.train", "--config", config, "--data", str(samples), "--run", str(run), *text)


def _evaluate(out: Path, name: str, run: Path, samples: Path, candidates: Path, oracle: Path) -> None:
    _say(f"6/8  evaluate {name} on logged clicks and, against the oracle, on all candidates, with their grades and without")
    if not (run / "metrics-candidates.json").exists():
        for data, extra in ((candidates, ["--hide-grades"]), (samples, []), (candidates, [])):
            arguments = ("--", "--oracle", str(oracle), "--train-data", str(samples), *extra)
            _torchx(out, "prectr.evaluate", "--run", str(run), "--data", str(data), *arguments, only=VERDICT)


def baselines(out: Path, samples: Path, candidates: Path, oracle: Path) -> dict[str, Path]:
    """The run directories of the cheap baselines, measured as the models are; trees only where LightGBM is installed."""
    kinds: list[Kind] = ["mixed", "trees"]
    if find_spec("lightgbm") is None:
        kinds.remove("trees")
        _say("7/8  no boosted trees: pip install 'prectr-torchrec[trees]'")
    runs = {kind: out / "runs" / kind for kind in kinds}
    for kind, run in runs.items():
        _say(f"7/8  fit and evaluate the baseline {kind} -> {run}")
        if not (run / f"metrics-candidates{HIDDEN}.json").exists():  # the last one written
            run_baseline(kind, samples, run, score=(samples, candidates), oracle=oracle, hide_grades=True)
    return {str(kind): run for kind, run in runs.items()}


def distil(out: Path, data: DataConfig, pair_settings: PairsConfig, vocab_size: int) -> Path:
    """From the log to a student: pairs, a teacher tuned on their grades, its soft grades, and what learns from them."""
    pairs, encoder, teacher, scores, student = (
        out / "text" / name for name in ("pairs.parquet", "encoder", "teacher", "scores", "student")
    )
    _say(f"2/8  teacher: pairs, a cross-encoder tuned on their grades, its soft grades of all -> {scores}")
    if not pairs.exists():
        write_pairs(data, pair_settings, out / "log" / "raw", pairs)
    build_if_absent(encoder, partial(_write_encoder, pairs, vocab_size))
    tune_teacher(encoder, pairs, teacher, tuning_config(TUNING))
    if not (scores / "teach.json").exists():
        _torchx(out, "prectr.teach", "--teacher", str(teacher), "--pairs", str(pairs), "--out", str(scores))
    _say(f"3/8  student: encoder and relevance tower from soft grades, then grades -> {student}")
    if not (student / "distill.json").exists():
        given = ("--config", RUNS["prectr_v2"], "--pairs", str(pairs), "--out", str(student))
        _torchx(out, "prectr.distill", *given, "--", "--teacher-scores", str(scores))
    return student


def _write_encoder(pairs: Path, vocab_size: int, folder: Path) -> None:
    table = PairsFile.open(pairs).read(["query", "title"], "train")
    train_tokenizer(sorted({*table["query"].to_pylist(), *table["title"].to_pylist()}), folder, vocab_size)
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=len(load_tokenizer(folder)), **TEACHER))
    with quiet_transformers():
        model.save_pretrained(folder)


def _torchx(out: Path, component: str, *arguments: str, only: str = "") -> None:
    """Runs a TorchX job on this machine; its logs stay in `out/logs`, and what `shown` takes of them is printed.

    Raises:
        RuntimeError: the job failed; its last lines were printed.
    """
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    scheduler = ["-s", "local_cwd", "-cfg", f"log_dir={(out / 'logs').absolute()}"]
    command = [str(programs / "torchx"), "--log_level", "WARNING", "run", *scheduler, component, "-j", f"1x{RANKS}", *arguments]
    command = [sys.executable, "-m", "prectr_torchrec.system.orphans", *command]
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        assert job.stdout is not None
        for line in shown(_noted(job.stdout, last), only):
            print(line, end="", flush=True)
    if job.returncode:
        print("".join(last), end="")
        raise RuntimeError(f"{component} failed; its logs are in {out / 'logs'}. Command: {' '.join(command)}")


def shown(lines: Iterable[str], only: str = "") -> Iterator[str]:
    """What the demo prints of a job: lines that have `only`, none of TorchX's own, and of its validations the last.

    Example::

        lines = ["local_cwd://torchx/train", "step 2  validation  ne 0.9", "step 4  validation  ne 0.8", "step 4  loss 0.5"]
        assert list(shown(lines)) == ["step 4  loss 0.5", "step 4  validation  ne 0.8"]
    """
    validation = ""
    for line in lines:
        if "  validation  " in line:
            validation = line
        elif only in line and not line.startswith("local_cwd://"):
            yield line
    if validation:
        yield validation


def _noted(lines: Iterable[str], last: deque[str]) -> Iterator[str]:
    for line in lines:
        last.append(line)
        yield line


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)
