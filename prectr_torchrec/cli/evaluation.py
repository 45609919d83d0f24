"""Commands that say what a run is worth, and why it ranks as it does."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prectr_torchrec.cli.options import Checkpoint, JsonFile, Nproc, Run, Samples
from prectr_torchrec.system.locks import check_free

if TYPE_CHECKING:
    from prectr_torchrec.config.data import Effect

app = typer.Typer()


class Baseline(StrEnum):
    trees = "trees"
    mixed = "mixed"


class Effects(StrEnum):
    user = "user"
    query = "query"


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
    against: Annotated[
        Path | None, typer.Option(help="Another run that scored the same split: differences with 95 % intervals.")
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
        "--against": against,
    }
    given = [word for flag, value in optional.items() if value is not None for word in (flag, str(value))]
    given += ["--hide-grades"] if hide_grades else []
    launch("evaluate", ["--run", str(run), "--data", str(data), "--checkpoint", checkpoint, *given], nproc)


@app.command()
def importance(
    run: Run,
    data: Samples,
    split: Annotated[str | None, typer.Option(help="test where there is one, else candidates.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file to write; default: importance-<split>.json in the run.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the exchanges.")] = 0,
    checkpoint: Checkpoint = "best",
    nproc: Nproc = 1,
) -> None:
    """Exchange each column that a ranker reads among requests or candidates, and measure what the AUC loses."""
    from prectr_torchrec.cli.preflight import check_run
    from prectr_torchrec.distributed.launch import launch

    check_run(run, checkpoint, data)
    optional = {"--split": split, "--out": out}
    given = [word for flag, value in optional.items() if value is not None for word in (flag, str(value))]
    arguments = ["--run", str(run), "--data", str(data), "--checkpoint", checkpoint, "--seed", str(seed), *given]
    launch("importance", arguments, nproc)


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
    json_file: JsonFile = None,
    checkpoint: Checkpoint = "best",
) -> None:
    """Take one request apart: what of the model makes each candidate's score, and which past events it looks at."""
    from prectr_torchrec.cli.preflight import check_run

    check_run(run, checkpoint, data)
    from prectr_torchrec.evaluation.explain import explain, format_explanation
    from prectr_torchrec.runs.workspace import write_json

    found = explain(run, data, request, split=split, checkpoint=checkpoint)
    typer.echo(format_explanation(found))
    if json_file is not None:
        write_json(found, json_file)


@app.command()
def effects(
    run: Run,
    data: Samples,
    out: Annotated[Path, typer.Option(help="Folder to write the samples into, with the sums as columns.")],
    events: Annotated[
        Path | None, typer.Option(help="Folder of prepared samples whose labelled splits are the events; default: --data.")
    ] = None,
    of: Annotated[list[Effects] | None, typer.Option(help="Whose events are summed up; may be repeated. Default: user.")] = None,
    checkpoint: Checkpoint = "best",
) -> None:
    """Add sums over the earlier events of users or queries to samples, by a trained ranker of mixed effects."""
    check_free(out)
    from prectr_torchrec.cli.preflight import check_run

    check_run(run, checkpoint, data)
    from prectr_torchrec.evaluation.effect_sums import write_effects

    whose: list[Effect] = [who.value for who in of or [Effects.user]]
    for split, known in write_effects(run, data, out, events=events, of=whose, checkpoint=checkpoint).items():
        for who, count in known.items():
            typer.echo(f"{out / split}: {count:,} requests with earlier events of the {who}")


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
