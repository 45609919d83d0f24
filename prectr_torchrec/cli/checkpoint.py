"""`prectr checkpoint`: what is in a run's checkpoints; and `prectr verify`: whether an export is as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look into the checkpoints of a run.", no_args_is_help=True)


@app.command()
def inspect(
    run: Annotated[Path, typer.Option(help="Run directory.")],
    checkpoint: Annotated[str, typer.Option(help="last, best, or the name of one that is kept.")] = "last",
    parameters: Annotated[bool, typer.Option("--parameters", help="List the towers' parameters too.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="JSON file to write the same to.")] = None,
) -> None:
    """Show what is kept, and a checkpoint's ranks, sharding, tables and optimizer state; 1 if its files are broken."""
    from prectr_torchrec.checkpoints.inspection import format_inspection, inspect_checkpoint
    from prectr_torchrec.evaluation.evaluate import write_json

    about = inspect_checkpoint(run, checkpoint)
    typer.echo(format_inspection(about, parameters=parameters))
    if json_file is not None:
        write_json(about, json_file)
    if about["broken"]:
        raise typer.Exit(1)


def verify(model: Annotated[Path, typer.Option(help="Folder of `prectr export`.")]) -> None:
    """Compare all files of an exported ranker with the digests of its export; serving compares large ones by size alone."""
    from prectr_torchrec.serving.digests import check
    from prectr_torchrec.serving.export import read_about

    files = read_about(model)["files"]
    check(model, files, all_digests=True)
    typer.echo(f"{model}: {len(files)} files as they were written, {sum(file['bytes'] for file in files.values()):,} bytes")
