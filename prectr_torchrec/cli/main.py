"""`prectr`: one thin function per command. Heavy imports are inside, so that `--help` is quick and `doctor` always runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prectr_torchrec.cli import checkpoint as cli_checkpoint
from prectr_torchrec.cli import serve as cli_serve
from prectr_torchrec.cli.local_paths import LocalPaths
from prectr_torchrec.system.doctor import check_versions, quiet_deprecations
from prectr_torchrec.system.failures import run_command
from prectr_torchrec.system.locks import check_free

app = typer.Typer(
    cls=LocalPaths,
    help="PRECTR-V2 for TorchRec: a raw search log in, a trained and measured ranker out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_checkpoint.app, name="checkpoint")
app.command()(cli_serve.serve)
app.command()(cli_checkpoint.verify)

Config = Annotated[str, typer.Option(help="A YAML file, or the name of a shipped configuration such as prectr_v1.")]
Raw = Annotated[Path, typer.Option(help="Folder of the raw log.")]
Samples = Annotated[Path, typer.Option(help="Folder of prepared samples.")]
Pairs = Annotated[Path, typer.Option(help="File of pairs.")]
Run = Annotated[Path, typer.Option(help="Run directory.")]
Exported = Annotated[Path, typer.Option(help="Folder of `prectr export`.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; may be repeated.")]
Checkpoint = Annotated[str, typer.Option(help="best, last, or the name of one that is kept, such as step-000000500.")]
Nproc = Annotated[int, typer.Option(min=1, help="Ranks on this machine.")]
Multiplier = Annotated[float, typer.Option(min=0, help="Multiplier of this effect on clicks; 0 switches it off.")]


class Device(StrEnum):
    cuda = "cuda"
    cpu = "cpu"


class Baseline(StrEnum):
    trees = "trees"
    mixed = "mixed"


class Quantize(StrEnum):
    int8 = "int8"
    fp16 = "fp16"


@app.callback()
def check(context: typer.Context) -> None:
    if context.invoked_subcommand != "doctor":
        check_versions()


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write: raw/, eval/ and meta.json.")],
    requests: int = 12000,
    seed: int = 1,
    users: int = 800,
    queries: int = 400,
    items: int = 2400,
    strictness: Multiplier = 1.0,
    query_strictness: Multiplier = 1.0,
    taste: Multiplier = 1.0,
    quality: Multiplier = 1.0,
    position: Multiplier = 1.0,
) -> None:
    """Write a simulated search log with planted effects, and its oracle apart."""
    from prectr_torchrec.data.simulate.simulate import simulate

    meta = simulate(
        out,
        requests=requests,
        seed=seed,
        users=users,
        queries=queries,
        items=items,
        strictness=strictness,
        query_strictness=query_strictness,
        taste=taste,
        quality=quality,
        position=position,
    )
    counts = meta["counts"]
    typer.echo(f"{out}: {requests:,} simulated requests, {counts['impressions']:,} impressions, {counts['clicks']:,} clicks")


@app.command()
def prepare(
    config: Config,
    raw: Raw,
    out: Annotated[Path, typer.Option(help="Folder for the samples; an unfinished preparation there is finished.")],
    candidates: Annotated[
        Path | None, typer.Option(help="File of request_id, item_id: the same requests with these candidates and no labels.")
    ] = None,
    relevance: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of `prectr teach`: predicted levels of pairs without a grade. Several are averaged."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Turn a raw search log into request-major samples."""
    from prectr_torchrec.config.unused import load_and_warn
    from prectr_torchrec.data.prepare.prepare import prepare
    from prectr_torchrec.data.prepare.summary import format_summary

    run = load_and_warn(config, overrides or (), only="data.")
    manifest = prepare(run.data, run.text, raw, out, candidates=candidates, relevance=relevance or ())
    typer.echo("\n".join([f"{out}:", *format_summary(manifest, run.data)]))


@app.command()
def pairs(
    config: Config,
    raw: Raw,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    candidates: Annotated[
        Path | None, typer.Option(help="File of request_id, item_id or query_id, item_id: further pairs, never shown.")
    ] = None,
    test_queries: Annotated[
        Path | None, typer.Option(help="File of query_id: these queries are test, and teach nothing.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Collect the pairs of query and title of a raw log, for a teacher to grade."""
    from prectr_torchrec.config.files import load_config
    from prectr_torchrec.data.pairs.pairs import write_pairs

    run = load_config(config, overrides or ())
    report = write_pairs(run.data, run.pairs, raw, out, candidates=candidates, test_queries=test_queries)
    typer.echo(f"{out}: {report['rows']:,} pairs")
    for what in ("by_source", "by_split", "grades", "new_queries", "dropped"):
        typer.echo(f"{what.replace('_', ' ')}: " + ", ".join(f"{name} {count:,}" for name, count in report[what].items()))


@app.command()
def teacher_tune(
    teacher: Annotated[Path, typer.Option(help="Folder of a Hugging Face encoder.")],
    pairs: Annotated[Path, typer.Option(help="File of pairs, some of them graded.")],
    out: Annotated[Path, typer.Option(help="Folder for the tuned classifier; an unfinished tuning there goes on.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, such as lr=5e-5; may be repeated."),
    ] = None,
) -> None:
    """Fine-tune a sequence classifier on the grades of pairs, to be their teacher."""
    check_free(out)
    from prectr_torchrec.cli.preflight import check_pairs

    check_pairs(pairs)
    from prectr_torchrec.text.tune import tune_teacher, tuning_config

    result = tune_teacher(teacher, pairs, out, tuning_config(overrides or ()))
    typer.echo(f"{out}: validation loss {result['validation_loss']:.4f} at step {result['best_step']} of {result['steps']}")


@app.command()
def teach(
    teacher: Annotated[Path, typer.Option(help="Folder of a Hugging Face causal language model or sequence classifier.")],
    pairs: Pairs,
    out: Annotated[Path, typer.Option(help="Folder for the soft grades; an unfinished job there is finished.")],
    hidden: Annotated[bool, typer.Option("--hidden", help="Write pooled hidden states too.")] = False,
    prompt: Annotated[Path | None, typer.Option(help="Prompt file of a causal model; default: the one shipped.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 1 makes the soft grades flatter.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens kept of a pair, or of each text in a prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of a batch, padding included.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16; auto: bf16 on a GPU.")] = None,
    device_map: Annotated[str | None, typer.Option(help="As of Hugging Face, for a model that needs several GPUs.")] = None,
    nproc: Nproc = 1,
) -> None:
    """Grade pairs softly with a teacher, for a student to learn from or to fill missing grades."""
    from prectr_torchrec.cli.preflight import check_pairs
    from prectr_torchrec.distributed.launch import launch

    check_pairs(pairs)
    optional = {
        "--prompt": prompt,
        "--temperature": temperature,
        "--max-length": max_length,
        "--max-tokens": max_tokens,
        "--precision": precision,
        "--device-map": device_map,
    }
    given = [word for flag, value in optional.items() if value is not None for word in (flag, str(value))]
    given += ["--hidden"] if hidden else []
    launch("teach", ["--teacher", str(teacher), "--pairs", str(pairs), "--out", str(out), *given], nproc, output=out)


@app.command()
def train(
    config: Config,
    data: Samples,
    run: Annotated[Path, typer.Option(help="Run directory; a run that is there already goes on.")],
    plan: Annotated[Path | None, typer.Option(help="Sharding plan of `prectr plan --save`; else it is planned here.")] = None,
    nproc: Nproc = 1,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Times that the ranks are started again, from the last checkpoint, after one has failed.")
    ] = 0,
    nodes: Annotated[str, typer.Option(help="Machines that run this command together: N, or MIN:MAX.")] = "1",
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where they meet: one of them, and a free port of it.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train a ranker, or resume its training. Exit code 75: stopped by a signal and saved; the same command goes on."""
    from prectr_torchrec.cli.preflight import check_training
    from prectr_torchrec.config.unused import load_and_warn
    from prectr_torchrec.distributed.launch import launch

    check_training(load_and_warn(config, overrides or ()), data)  # a mistake is no reason to start ranks
    sets = [word for override in overrides or () for word in ("--set", override)]
    planned = ["--plan", str(plan)] if plan else []
    arguments = ["--config", config, "--data", str(data), "--run", str(run), *planned, *sets]
    launch("train", arguments, nproc, output=run, max_restarts=max_restarts, nodes=nodes, rendezvous=rendezvous)


@app.command()
def plan(
    config: Config,
    gpus: Annotated[int, typer.Option(min=1, help="Ranks of the job.")],
    gpus_per_host: Annotated[int, typer.Option(min=1)] = 8,
    hbm: Annotated[str, typer.Option(help="Memory of each GPU.")] = "80GB",
    ddr: Annotated[str, typer.Option(help="Memory of each host.")] = "1TB",
    ssd: Annotated[str, typer.Option(help="SSD of each host for tables.")] = "0GB",
    device: Annotated[Device, typer.Option(help="cpu: ranks without a GPU.")] = Device.cuda,
    save: Annotated[Path | None, typer.Option(help="JSON file to write the plan to, for `prectr train --plan`.")] = None,
    overrides: Overrides = None,
) -> None:
    """Show where each table would lie on machines that need not be at hand, or what would make the tables fit."""
    from prectr_torchrec.config.unused import load_and_warn

    run = load_and_warn(config, overrides or ())  # before torch is imported
    from prectr_torchrec.distributed import planning
    from prectr_torchrec.distributed.workload import build_workload

    hardware = planning.make_hardware(gpus, gpus_per_host, hbm=hbm, ddr=ddr, ssd=ssd, device=device.value)
    workload = build_workload(run)
    found = planning.plan_run(workload, hardware)
    if found is None:
        typer.echo(planning.format_misfit(workload, hardware))
        raise typer.Exit(1)
    typer.echo(planning.format_plan(workload, found, hardware))
    if save is not None:
        planning.save_plan(found, save)


@app.command()
def distill(
    config: Config,
    pairs: Pairs,
    out: Annotated[Path, typer.Option(help="Result folder, to be `text.path`; an unfinished one is gone on with.")],
    teacher_scores: Annotated[
        list[Path] | None, typer.Option(help="Folder of a teacher's scores; several are averaged, none: grades alone.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer; default: one trained on the pairs.")] = None,
    nproc: Nproc = 1,
    overrides: Overrides = None,
) -> None:
    """Distil a small text encoder and relevance tower from a teacher's scores and from grades."""
    from prectr_torchrec.cli.preflight import check_pairs
    from prectr_torchrec.config.files import load_config
    from prectr_torchrec.distributed.launch import launch

    load_config(config, overrides or ())
    check_pairs(pairs)
    words = [word for folder in teacher_scores or () for word in ("--teacher-scores", str(folder))]
    words += ["--tokenizer", str(tokenizer)] if tokenizer is not None else []
    words += [word for override in overrides or () for word in ("--set", override)]
    launch("distill", ["--config", config, "--pairs", str(pairs), "--out", str(out), *words], nproc, output=out)


@app.command()
def evaluate(
    run: Run,
    data: Samples,
    split: Annotated[str | None, typer.Option(help="test where there is one, else candidates.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Parquet file to write the predictions to.")] = None,
    metrics: Annotated[Path | None, typer.Option(help="JSON file to write the measures to.")] = None,
    oracle: Annotated[Path | None, typer.Option(help="Oracle of a simulated log, to measure expected AUC.")] = None,
    train_data: Annotated[
        Path | None, typer.Option(help="Prepared folder whose train and judgments splits were trained on; default: --data.")
    ] = None,
    hide_grades: Annotated[
        bool, typer.Option("--hide-grades", help="Score as if no candidate of the split had a grade.")
    ] = False,
    checkpoint: Checkpoint = "best",
    nproc: Nproc = 1,
) -> None:
    """Score a split with a trained ranker and measure it, overall and by segment."""
    from prectr_torchrec.cli.preflight import check_run
    from prectr_torchrec.distributed.launch import launch

    check_run(run, checkpoint, data)
    optional = {
        "--split": split,
        "--predictions": predictions,
        "--metrics": metrics,
        "--oracle": oracle,
        "--train-data": train_data,
    }
    given = [word for flag, value in optional.items() if value is not None for word in (flag, str(value))]
    given += ["--hide-grades"] if hide_grades else []
    launch("evaluate", ["--run", str(run), "--data", str(data), "--checkpoint", checkpoint, *given], nproc)


@app.command()
def baseline(
    kind: Annotated[Baseline, typer.Argument(help="trees: LightGBM; mixed: mixed-effects logistic regression.")],
    data: Samples,
    run: Annotated[Path, typer.Option(help="Run directory to write, for `prectr report`.")],
    score: Annotated[
        list[Path] | None, typer.Option(help="Folder of prepared samples to score and measure; default: --data. May be repeated.")
    ] = None,
    oracle: Annotated[Path | None, typer.Option(help="Oracle of a simulated log, to measure expected AUC.")] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Train on the validation split too.")] = False,
    hide_grades: Annotated[bool, typer.Option("--hide-grades", help="Score once more as if no candidate had a grade.")] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one setting of the baseline, such as rank=8; may be repeated."),
    ] = None,
) -> None:
    """Fit a baseline on prepared samples, score them as `evaluate` does, and measure it."""
    check_free(run)
    from prectr_torchrec.data.schema import load_manifest

    load_manifest(data)  # before torch is imported
    from prectr_torchrec.baselines.run import run_baseline
    from prectr_torchrec.evaluation.measures_text import format_metrics

    measured = run_baseline(
        kind.value, data, run, score=score or (), oracle=oracle, refit=refit, hide_grades=hide_grades, overrides=overrides or ()
    )
    for found in measured:
        typer.echo(format_metrics(found) + "\n")
    typer.echo(f"{run}: predictions and metrics")


@app.command()
def explain(
    run: Run,
    data: Samples,
    request: Annotated[str, typer.Option(help="Request id, as the log writes it.")],
    split: Annotated[str | None, typer.Option(help="Where the request is: test where there is one, else candidates.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="JSON file to write the same to.")] = None,
    checkpoint: Checkpoint = "best",
) -> None:
    """Take one request apart: what of the model makes each candidate's score, and which past events it looks at."""
    from prectr_torchrec.cli.preflight import check_run

    check_run(run, checkpoint, data)
    from prectr_torchrec.evaluation.evaluate import write_json
    from prectr_torchrec.evaluation.explain import explain, format_explanation

    found = explain(run, data, request, split=split, checkpoint=checkpoint)
    typer.echo(format_explanation(found))
    if json_file is not None:
        write_json(found, json_file)


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder to write; must not be there.")],
    quantize: Annotated[Quantize | None, typer.Option(help="Precision of the tables' rows; default: as trained.")] = None,
    checkpoint: Checkpoint = "best",
) -> None:
    """Write a trained ranker to a folder that serves without the run, table by table whatever their size."""
    check_free(out)
    from prectr_torchrec.cli.preflight import check_run

    check_run(run, checkpoint)
    from prectr_torchrec.serving.export import export

    about = export(run, out, quantize=quantize.value if quantize else None, checkpoint=checkpoint)
    for name, table in about["tables"].items():
        typer.echo(f"{name}: {table['rows']:,} rows x {table['dim']}, {table['precision']}, {table['bytes'] / 1e6:,.1f} MB")
    typer.echo(f"{out}: {about['run']}, checkpoint {about['checkpoint']}")


@app.command()
def index(
    model: Exported,
    items: Annotated[
        Path, typer.Option(help="Parquet or CSV file with a column of titles, the most wanted first; or a folder of such.")
    ],
    column: Annotated[str, typer.Option(help="Of the titles.")] = "title",
) -> None:
    """Encode the titles of a catalogue ahead, for an exported ranker to start with."""
    check_free(model)
    from prectr_torchrec.serving.index import index_titles
    from prectr_torchrec.serving.ranker import Ranker

    count = index_titles(Ranker.load(model), model, items, column)
    typer.echo(f"{model}: {count:,} titles are encoded")


@app.command()
def score(
    model: Exported,
    data: Annotated[Path, typer.Option(help="Folder of sample files, such as a split of a prepared folder.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write; an unfinished job there goes on.")],
    nproc: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Score the candidates of sample files with an exported ranker."""
    check_free(out)
    from prectr_torchrec.serving.score_files import score_files

    typer.echo(f"{out}: {score_files(model, data, out, nproc=nproc):,} candidates")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated run directories; the first one leads.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one HTML page about evaluated runs, side by side."""
    from prectr_torchrec.evaluation.report import write_report

    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    write_report(out, dict(zip(names, runs, strict=True)))
    typer.echo(out)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder of all that the demo makes.")] = Path("runs/demo")) -> None:
    """Simulate, prepare, train on two ranks, evaluate beside baselines, and report."""
    check_free(out)
    from prectr_torchrec.cli.demo import demo

    demo(out)


@app.command()
def config(config: Config, overrides: Overrides = None) -> None:
    """Print a configuration, resolved and with the documentation of its fields."""
    from prectr_torchrec.config.files import describe_config, load_config

    typer.echo(describe_config(load_config(config, overrides or ())))


@app.command()
def doctor() -> None:
    """Say which torch, FBGEMM and TorchRec are here, whether they fit, and what to install if not."""
    from prectr_torchrec.system.doctor import doctor

    raise typer.Exit(doctor())


def main() -> None:
    """Runs the command line; a user's mistake ends in one message and exit code 2, a failed rank in its message and 1."""
    quiet_deprecations()
    run_command(app)
