"""`prectr simulate`, `init`, `prepare` and `pairs`: from a raw search log to samples, and to pairs for a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prectr_torchrec.cli.options import Config, JsonFile, Overrides
from prectr_torchrec.system.locks import check_free

app = typer.Typer()

Raw = Annotated[Path, typer.Option(help="Folder of the raw log.")]
Multiplier = Annotated[float, typer.Option(min=0, help="Multiplier of this effect on clicks; 0 switches it off.")]


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write: raw/, eval/ and meta.json.")],
    requests: Annotated[int, typer.Option(help="Requests of the log.")] = 12000,
    seed: Annotated[int, typer.Option(help="Another one gives another log.")] = 1,
    users: Annotated[int, typer.Option(help="Users who search.")] = 800,
    queries: Annotated[int, typer.Option(help="Distinct queries.")] = 400,
    items: Annotated[int, typer.Option(help="Items of the catalogue.")] = 2400,
    strictness: Multiplier = 1.0,
    query_strictness: Multiplier = 1.0,
    taste: Multiplier = 1.0,
    quality: Multiplier = 1.0,
    position: Multiplier = 1.0,
    price: Multiplier = 0.0,
    tags: Multiplier = 0.0,
    rating: Multiplier = 0.0,
    image: Multiplier = 0.0,
    context: Multiplier = 0.0,
    engine: Multiplier = 0.0,
    description: Multiplier = 0.0,
    labels: Annotated[
        float, typer.Option(min=0, help="Multiplier of what carts and orders depend on; 0: the log has none, and no times.")
    ] = 0.0,
) -> None:
    """Write a simulated search log with planted effects, and its oracle apart."""
    check_free(out)
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
        price=price,
        tags=tags,
        rating=rating,
        image=image,
        context=context,
        engine=engine,
        description=description,
        labels=labels,
    )
    counts = meta["counts"]
    typer.echo(f"{out}: {requests:,} simulated requests, {counts['impressions']:,} impressions, {counts['clicks']:,} clicks")


@app.command("init")
def initialise(
    folder: Annotated[Path, typer.Argument(help="Folder of the log's CSV or Parquet files.")],
    out: Annotated[Path | None, typer.Option(help="YAML file to write; by default FOLDER's name in this folder.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="TABLE[.COLUMN]=NAME",
            help="Which file or column it is, where its name does not say; may be repeated.",
        ),
    ] = None,
) -> None:
    """Look at a log's own files and write a commented configuration for them."""
    from prectr_torchrec.data.guess.guess import write_guess

    out = Path(f"{folder.resolve().name}.yaml") if out is None else out
    if wrong := next((word for word in given or () if "=" not in word), None):
        raise ValueError(f"--map {wrong!r}: write it as TABLE=FILE or TABLE.COLUMN=NAME")
    guess = write_guess(folder, out, dict(word.split("=", 1) for word in given or ()))
    typer.echo("\n".join([f"{out}: written. What it says, and why:", *(f"  {line}" for line in guess.report())]))
    typer.echo(f"Next: prectr prepare --config {out} --raw {folder} --out samples")


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
    check_free(out)
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
    json_file: JsonFile = None,
    overrides: Overrides = None,
) -> None:
    """Collect the pairs of query and title of a raw log, for a teacher to grade."""
    check_free(out)
    from prectr_torchrec.config.files import load_config
    from prectr_torchrec.data.pairs.pairs import write_pairs
    from prectr_torchrec.runs.workspace import write_json

    run = load_config(config, overrides or ())
    report = write_pairs(run.data, run.pairs, raw, out, candidates=candidates, test_queries=test_queries)
    typer.echo(f"{out}: {report['rows']:,} pairs")
    for what in ("by_source", "by_split", "grades", "new_queries", "dropped"):
        typer.echo(f"{what.replace('_', ' ')}: " + ", ".join(f"{name} {count:,}" for name, count in report[what].items()))
    if json_file is not None:
        write_json(report, json_file)
