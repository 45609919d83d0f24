"""`prectr export`, `verify`, `index`, `score` and `serve`: a ranker that does without its run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prectr_torchrec.cli.options import Checkpoint, Run
from prectr_torchrec.cli.serve import serve
from prectr_torchrec.system.locks import check_free

app = typer.Typer()

Exported = Annotated[Path, typer.Option(help="Folder of `prectr export`.")]


class Quantize(StrEnum):
    int8 = "int8"
    fp16 = "fp16"


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder to write; must not be there.")],
    quantize: Annotated[Quantize | None, typer.Option(help="Precision of the tables' rows; default: as trained.")] = None,
    checkpoint: Checkpoint = "best",
    vectors: Annotated[Path | None, typer.Option(help="Prepared folder with the vectors of items that the ranker reads.")] = None,
    without_vectors: Annotated[bool, typer.Option("--without-vectors", help="Requests bring the vectors of items.")] = False,
) -> None:
    """Write a trained ranker to a folder that serves without the run, table by table whatever their size."""
    check_free(out)
    from prectr_torchrec.cli.preflight import check_run

    check_run(run, checkpoint)
    from prectr_torchrec.serving.export import export

    about = export(
        run,
        out,
        quantize=quantize.value if quantize else None,
        checkpoint=checkpoint,
        vectors=vectors,
        without_vectors=without_vectors,
    )
    for name, table in about["tables"].items():
        typer.echo(f"{name}: {table['rows']:,} rows x {table['dim']}, {table['precision']}, {table['bytes'] / 1e6:,.1f} MB")
    typer.echo(f"{out}: {about['run']}, checkpoint {about['checkpoint']}")


@app.command()
def verify(model: Exported) -> None:
    """Compare all files of an exported ranker with the digests of its export; serving compares large ones by size alone."""
    from prectr_torchrec.serving.digests import check
    from prectr_torchrec.serving.export import read_about

    files = read_about(model)["files"]
    check(model, files, all_digests=True)
    typer.echo(f"{model}: {len(files)} files as they were written, {sum(file['bytes'] for file in files.values()):,} bytes")


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


app.command()(serve)
