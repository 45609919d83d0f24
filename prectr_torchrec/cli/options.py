"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[str, typer.Option(help="A YAML file, or the name of a shipped configuration such as prectr_v1.")]
Samples = Annotated[Path, typer.Option(help="Folder of prepared samples.")]
Run = Annotated[Path, typer.Option(help="Run directory.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; may be repeated.")]
Checkpoint = Annotated[str, typer.Option(help="best, last, or the name of one that is kept, such as step-000000500.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="JSON file to write the same to.")]
Nproc = Annotated[int, typer.Option(min=1, help="Ranks on this machine.")]
