"""`prectr checkpoint`: what is in a run's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prectr_torchrec.cli.options import JsonFile

app = typer.Typer(help="Look into the checkpoints of a run.", no_args_is_help=True)


@app.command()
def inspect(
    run: Annotated[Path, typer.Option(help="Run directory.")],
    checkpoint: Annotated[str, typer.Option(help="last, best, or the name of one that is kept.")] = "last",
    parameters: Annotated[bool, typer.Option("--parameters", help="List the towers' parameters too.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Show what is kept, and a checkpoint's ranks, sharding, tables and optimizer state; 1 if its files are broken."""
    from prectr_torchrec.checkpoints.inspection import format_inspection, inspect_checkpoint
    from prectr_torchrec.runs.workspace import write_json

    about = inspect_checkpoint(run, checkpoint)
    typer.echo(format_inspection(about, parameters=parameters))
    if json_file is not None:
        write_json(about, json_file)
    if about["broken"]:
        raise typer.Exit(1)
