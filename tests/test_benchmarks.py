"""Every documented command of benchmarks/ names what is there, and runs at its smallest size.

The runs are marked `benchmark`: `make benchmarks-smoke` does them, `make test` only looks at the commands and runs the quickest.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import torch
from pair_files import write_pairs, write_teacher_scores
from teachers import classifier

from prectr_torchrec.config.files import load_config

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    path.stem: path for path in sorted((ROOT / "benchmarks").glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")
}
NO_TEXT = ["model.text=false", "text.vocab_size=600"]
SMALL = [*NO_TEXT, "train.stages=[{split: train, epochs: 1}]", "batch.requests=32", "batch.candidates=224"]
STUDENT = [
    "text.encoder.hidden_size=16",
    "text.encoder.num_hidden_layers=1",
    "text.encoder.num_attention_heads=2",
    "text.encoder.intermediate_size=16",
    "text.vocab_size=400",
    "distill.teacher_epochs=1",
    "distill.grade_epochs=1",
]


class Command(NamedTuple):
    """A command as a document writes it."""

    where: str
    script: str
    options: frozenset[str]


def documented_commands() -> list[Command]:
    """In backticks in the documents, and on lines of their own in the benchmarks' docstrings."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for script, rest in re.findall(r"`[^`]*?benchmarks/(\w+)\.py([^`]*)`", page.read_text(encoding="utf-8")):
            found.append(Command(page.name, script, _options(rest)))
    for script, path in SCRIPTS.items():
        docstring = path.read_text(encoding="utf-8").split('"""')[1]
        for named, rest in re.findall(r"^ .*python benchmarks/(\w+)\.py(.*)$", docstring, re.MULTILINE):
            assert named == script
            found.append(Command(path.name, script, _options(rest.split("#")[0])))
    return found


def _options(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"--[a-z][a-z-]*", text))


def _sets(settings: list[str]) -> str:
    return " ".join(f"--set {shlex.quote(setting)}" for setting in settings)


class Inputs:
    """What benchmarks read, made once and only as far as it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def log(self) -> Path:
        return self._made("log", "simulate --requests 700 --users 50 --queries 40 --items 200")

    @property
    def sets(self) -> str:
        """The settings that samples and run are made with."""
        test_from = json.loads((self.log / "meta.json").read_text(encoding="utf-8"))["test_from_timestamp"]
        return _sets([f"data.split.test_from={test_from}", *SMALL])

    @property
    def checkout(self) -> Path:
        return ROOT

    @property
    def samples(self) -> Path:
        return self._made("samples", f"prepare --config demo --raw {self.log}/raw {self.sets}")

    @property
    def run(self) -> Path:
        return self._made("run", f"train --config demo --data {self.samples} {self.sets}", to="--run")

    @property
    def model(self) -> Path:
        return self._made("model", f"export --run {self.run}")

    @property
    def predictions(self) -> Path:
        oracle = self.log / "eval" / "oracle.parquet"
        prepare = f"prepare --config demo --raw {self.log}/raw --candidates {oracle} {self.sets}"
        scored = f"--data {self._made('candidates', prepare)} --oracle {oracle} --train-data {self.samples}"
        return self._made("predictions.parquet", f"evaluate --run {self.run} {scored}", to="--predictions")

    @property
    def scores(self) -> Path:
        return self.pairs.with_name("scores")

    @property
    def graded(self) -> Path:
        return self.pairs.with_name("graded.parquet")

    @property
    def pairs(self) -> Path:
        if not (path := self.folder / "pairs.parquet").exists():
            table = write_pairs(path, queries=60)
            write_teacher_scores(self.folder / "scores", table)
            graded = table.filter(table["split"].to_numpy(zero_copy_only=False) == "test").drop_columns("true")
            graded = graded.filter(graded["relevance"].is_valid())
            pq.write_table(graded.select(["query_id", "item_id", "relevance"]), self.folder / "graded.parquet")
        return path

    @property
    def teacher(self) -> Path:
        return classifier(self.folder / "teacher")

    def _made(self, name: str, command: str, to: str = "--out") -> Path:
        if not (path := self.folder / name).exists():
            _succeed([sys.executable, "-m", "prectr_torchrec.cli", *shlex.split(command), to, str(path)])
        return path


class Case(NamedTuple):
    """A benchmark at its smallest size."""

    script: str
    arguments: str
    """`{name}` stands for what `Inputs` makes, `{out}` for a scratch folder."""
    prints: str
    """A pattern of what it must say."""
    needs: tuple[str, ...] = ()
    """Modules of the extra `bench`."""
    gpu: bool = False


DIN = "--turn 128 --rows 256 --rounds 1"
BENCH = ("torch_rechub", "pandas")
QUICK = {
    "reader": Case("reader", "--requests 300 --runs 1", r"[\d,]+ candidates"),
    "words": Case("words", "", r"median sentence of all: \d+"),
}
SLOW = {
    "ablation": Case(
        "ablation",
        f"--log {{log}} --out {{out}} --config demo --seeds 1 --nproc 1 --shuffled --baseline mixed {_sets(SMALL)}",
        "grades hidden, all",
    ),
    "attack": Case("attack", "--model {model} --seconds 3 --clients 3", "honest requests under attack"),
    "billion": Case("billion", "--out {out} --rows 8400 --requests 400", "8,400"),
    "columns": Case(
        "columns",
        f"--out {{out}} --kinds price --requests 600 --config demo --seeds 1 --effects --trees {_sets(SMALL)}",
        r"(?s)to win.*price",
    ),
    "din": Case("din", f"--requests 600 --epochs 1 {DIN}", "ours above the best of torch-rechub", needs=BENCH),
    "din, of samples": Case(
        "din", f"--data {{samples}} --config demo_din --epochs 0 {DIN} {{sets}}", "DataGenerator", needs=BENCH
    ),
    "effect costs": Case(
        "effect_costs",
        "--impressions 24000 --rounds 1 --runs {run} {run} --data {samples} --data-with-sums {samples}",
        r"(?s)sums, linear around zero: [\d,]+ impressions.*times as long",
    ),
    "effects": Case(
        "effects",
        f"--log {{log}} --out {{out}} --config demo --seeds 1 {_sets(SMALL)} --without taste --mixed train.stages.1.epochs=2",
        r"(?s)ranker .*mixed .*fused .*slope",
    ),
    "encoder": Case(
        "encoder",
        "--pairs {pairs} --teacher-scores {scores} --graded {graded} --out {out} --config student "
        f"--students 'dual + match' --seeds 1 {_sets(STUDENT)}",
        r"dual \+ match",
    ),
    "labels": Case(
        "labels", f"--out {{out}} --requests 600 --config demo --seeds 1 {_sets(SMALL)}", r"(?s)AUC of orders.*by its score"
    ),
    "export_large": Case("export_large", "--folder {out} --rows 30_000 --dim 4 --quantize int8 --requests 3", "export to"),
    "fuzz": Case("fuzz", "--model {model} --cases 30 --examples 1", "30", needs=("schemathesis",)),
    "fuzz, of files": Case(
        "fuzz", "--damaged runs configs samples raw pairs scores exports --tries 2 --seed 1 --first 0", "exports: 2 tries"
    ),
    "kills": Case("kills", "--config demo --data {samples} --out {out} --kills 2 {sets}", "2 kills, 0"),
    "lost": Case("lost", "--log {log} --predictions {predictions} --tokenizer {samples}/tokenizer", "taste", needs=("pandas",)),
    "managed_ids": Case("managed_ids", "--ranks 2 --rows 840 --drift 2 --steps 8 --batch 64", "AUC|auc"),
    "plan": Case("plan", "--gpus 8 --rounds 1", r" 8 GPUs  [\d.]+ to [\d.]+ s"),
    "parity": Case("parity", "--run {run} --data {samples}", "candidates"),
    "reader, of samples": Case("reader", "--data {samples} --config demo --runs 1", "candidates"),
    "schedule": Case(
        "schedule", f"--out {{out}} --requests 400 --passes 1 --batch 32 --seeds 1 {_sets(NO_TEXT)}", r"\| 400 \| 32 \| 1 \| 1 \|"
    ),
    "serving": Case(
        "serving", "--run {run} --model {model} --data {samples}/test --candidates 20 --rounds 3 --load 3", "exported ranker"
    ),
    "step": Case("step", f"--config demo_dnn --requests 600 --steps 3 --rounds 1 {_sets(SMALL[2:])}", "a step fed by the reader"),
    "step, against a setting": Case(
        "step",
        f"--config demo_dnn --requests 600 --steps 3 --rounds 1 --against train.weight_decay=0.1 {_sets(SMALL[2:])}",
        "of the first",
    ),
    "step, against a checkout": Case(
        "step",
        f"--config demo_dnn --requests 600 --steps 3 --rounds 1 --against {{checkout}} {_sets(SMALL[2:])}",
        "1.00 of the CPU time of this checkout",
    ),
    "step, of samples": Case("step", "--data {samples} --config demo --steps 3 --rounds 1 {sets}", "a step fed by the reader"),
    "teach": Case("teach", "--teacher {teacher} --pairs {pairs} --count 20 --rounds 1", "pairs/s"),
    "teach, a shape": Case("teach", "--shape 0.5b --pairs {pairs} --count 20 --rounds 1", "Qwen2 shape 0.5b", gpu=True),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


def test_documented_commands_name_scripts_and_options_that_are_there() -> None:
    commands = documented_commands()
    assert {command.script for command in commands} == set(SCRIPTS)
    for where, script, options in commands:
        known = set(re.findall(r'add_argument\("(--[a-z-]+)"', SCRIPTS[script].read_text(encoding="utf-8")))
        assert options <= known, f"{where}: benchmarks/{script}.py has no option {options - known}"


def test_every_documented_option_has_a_smallest_run() -> None:
    cases = (*QUICK.values(), *SLOW.values())
    for where, script, options in documented_commands():
        tried = frozenset().union(
            *(_options(case.arguments.replace("{sets}", "--set")) for case in cases if case.script == script)
        )
        assert options <= tried, f"{where}: {options - tried} of benchmarks/{script}.py are in no smallest run"


def test_an_ablation_is_v2_with_a_part_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    ablation = importlib.import_module("ablation")
    assert len(ablation.ABLATIONS) == 15
    for name in ablation.ABLATIONS:
        config = load_config(*ablation.resolve(name))
        assert config.name == name and config != load_config("prectr_v2", [f"name={name}"])


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_benchmark_runs(name: str, inputs: Inputs, tmp_path: Path) -> None:
    run(QUICK[name], inputs, tmp_path)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", SLOW)
def test_a_benchmark_runs(name: str, inputs: Inputs, tmp_path: Path) -> None:
    case = SLOW[name]
    if missing := [module for module in case.needs if importlib.util.find_spec(module) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'prectr-torchrec[bench]'")
    if case.gpu and not torch.cuda.is_available():
        pytest.skip("no GPU")
    run(case, inputs, tmp_path)


def run(case: Case, inputs: Inputs, scratch: Path) -> None:
    arguments = case.arguments.replace("{out}", str(scratch / "out"))
    arguments = re.sub(r"{(\w+)}", lambda name: str(getattr(inputs, name[1])), arguments)
    command = [sys.executable, str(SCRIPTS[case.script]), *shlex.split(arguments)]
    assert re.search(case.prints, _succeed(command))


def _succeed(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout
