"""`prectr`: one thin function per command. Heavy imports are inside, so that `--help` is quick and `doctor` always runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prectr_torchrec.cli import checkpoint, data, deploy, evaluation, text, train
from prectr_torchrec.cli.local_paths import LocalPaths
from prectr_torchrec.cli.options import Config, JsonFile, Overrides
from prectr_torchrec.system.doctor import check_versions, installed, quiet_deprecations
from prectr_torchrec.system.failures import run_command
from prectr_torchrec.system.job_environment import QUIET, environment
from prectr_torchrec.system.locks import check_free

app = typer.Typer(
    cls=LocalPaths,
    help="PRECTR-V2 for TorchRec: a raw search log in, a trained and measured ranker out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (data, text, train, evaluation, deploy):
    app.add_typer(commands.app)
app.add_typer(checkpoint.app, name="checkpoint")


def show_version(wanted: bool) -> None:
    """Prints the version of the installation, of its git tag, and ends."""
    if wanted:
        typer.echo(installed("prectr-torchrec") or "not installed")
        raise typer.Exit


@app.callback()
def check(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")] = False,
    without_progress: Annotated[
        bool, typer.Option("--quiet", help="No progress on the standard error; results, notes and errors stay.")
    ] = False,
) -> None:
    if without_progress:
        context.with_resource(environment({QUIET: "1"}))  # for the ranks that a command starts too
    if context.invoked_subcommand != "doctor":
        check_versions()


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
def doctor(json_file: JsonFile = None) -> None:
    """Say which torch, FBGEMM and TorchRec are here, whether they fit, and what to install if not."""
    from prectr_torchrec.system.doctor import diagnose, format_diagnosis

    found, problems = diagnose()
    typer.echo(format_diagnosis(found, problems))
    if json_file is not None:
        from prectr_torchrec.runs.workspace import write_json

        write_json({"found": found, "problems": problems}, json_file)
    raise typer.Exit(1 if problems else 0)


def main() -> None:
    """Runs the command line; a user's mistake ends in one message and exit code 2, a failed rank in its message and 1."""
    quiet_deprecations()
    run_command(app)
