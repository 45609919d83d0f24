"""`prectr train`, and `prectr plan`: where the tables of a training would lie."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prectr_torchrec.cli.options import Checkpoint, Config, JsonFile, Nproc, Overrides, Samples
from prectr_torchrec.system.locks import check_job_free

app = typer.Typer()


class Device(StrEnum):
    cuda = "cuda"
    cpu = "cpu"


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
    if nodes == "1":
        check_job_free(run)
    from prectr_torchrec.cli.preflight import check_training
    from prectr_torchrec.config.unused import load_and_warn
    from prectr_torchrec.distributed.launch import launch

    check_training(load_and_warn(config, overrides or ()), data)  # a mistake is no reason to start ranks
    sets = [word for override in overrides or () for word in ("--set", override)]
    planned = ["--plan", str(plan)] if plan else []
    arguments = ["--config", config, "--data", str(data), "--run", str(run), *planned, *sets]
    launch("train", arguments, nproc, output=run, max_restarts=max_restarts, nodes=nodes, rendezvous=rendezvous)


@app.command()
def fuse(
    members: Annotated[list[Path], typer.Argument(help="Run directories of trained rankers, of configurations of unlike names.")],
    data: Samples,
    run: Annotated[Path, typer.Option(help="Run directory to make.")],
    checkpoint: Checkpoint = "best",
    nproc: Nproc = 1,
) -> None:
    """Make one ranker of several: a sum of their click logits, with weights fitted on the validation split of --data."""
    check_job_free(run)
    from prectr_torchrec.distributed.launch import launch
    from prectr_torchrec.runs.layout import checkpoint_path, is_unfinished

    for member in members:
        checkpoint_path(member, checkpoint)  # before torch is imported
    if run.exists() and not is_unfinished(run):
        raise FileExistsError(f"{run}: a run is there already; remove it or choose another --run")
    given = [word for member in members for word in ("--member", str(member))]
    arguments = [*given, "--data", str(data), "--run", str(run), "--checkpoint", checkpoint]
    launch("fuse", arguments, nproc, output=run)


@app.command()
def plan(
    config: Config,
    gpus: Annotated[int, typer.Option(min=1, help="Ranks of the job.")],
    gpus_per_host: Annotated[int, typer.Option(min=1, help="GPUs, or ranks, of each host.")] = 8,
    hbm: Annotated[str, typer.Option(help="Memory of each GPU.")] = "80GB",
    ddr: Annotated[str, typer.Option(help="Memory of each host.")] = "1TB",
    ssd: Annotated[str, typer.Option(help="SSD of each host for tables.")] = "0GB",
    device: Annotated[Device, typer.Option(help="cpu: ranks without a GPU.")] = Device.cuda,
    save: Annotated[Path | None, typer.Option(help="JSON file to write the plan to, for `prectr train --plan`.")] = None,
    json_file: JsonFile = None,
    overrides: Overrides = None,
) -> None:
    """Show where each table would lie on machines that need not be at hand, or what would make the tables fit."""
    from prectr_torchrec.config.unused import load_and_warn

    run = load_and_warn(config, overrides or ())  # before torch is imported
    from prectr_torchrec.distributed import planning
    from prectr_torchrec.distributed.workload import build_workload
    from prectr_torchrec.runs.workspace import write_json

    hardware = planning.make_hardware(gpus, gpus_per_host, hbm=hbm, ddr=ddr, ssd=ssd, device=device.value)
    workload = build_workload(run)
    found = planning.plan_run(workload, hardware)
    if json_file is not None:
        write_json(planning.describe_plan(workload, found, hardware), json_file)
    if found is None:
        typer.echo(planning.format_misfit(workload, hardware))
        raise typer.Exit(1)
    typer.echo(planning.format_plan(workload, found, hardware))
    if save is not None:
        planning.save_plan(found, save)
