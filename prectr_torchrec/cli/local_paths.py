"""The command line's gate: no command is given a URL for a path."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from prectr_torchrec.system.paths import check_arguments


class LocalPaths(TyperGroup):
    """A group of commands of which no argument may name a URL."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        check_arguments(args)
        return super().parse_args(ctx, args)
