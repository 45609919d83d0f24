"""Writes docs/reference/commands.md from the parsers of the command line: `python packaging/commands_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from prectr_torchrec.cli.main import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"
HEAD = """# Commands

Written by `packaging/commands_page.py` from the parsers; `prectr COMMAND --help` prints the same.
`prectr config --config CONFIG` prints every setting that `--set` can change, with its documentation.
"""


def page() -> str:
    """The page as it should be."""
    group = typer.main.get_command(app)
    found = [*_commands(group, "prectr")]
    rows = [f"| [`{name}`](#{_anchor(name)}) | {_sentence(command)} |" for name, command in found]
    table = "\n".join(["| command | does |", "|---|---|", *rows])
    options = [parameter for parameter in group.params if parameter.name not in ("help", "args")]
    shared = "\n".join(["", "Before any command:", "", "| option | default | meaning |", "|---|---|---|", *map(_row, options)])
    return "\n".join([HEAD, table, shared, *(_section(name, command) for name, command in found)])


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for part, below in getattr(command, "commands", {}).items():
        if hasattr(below, "commands"):
            yield from _commands(below, f"{name} {part}")
        else:
            yield f"{name} {part}", below


def _section(name: str, command: Any) -> str:
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    words = [_usage(parameter) for parameter in parameters if parameter.required]
    usage = " ".join([name, *words, *(["[OPTIONS]"] if len(words) < len(parameters) else [])])
    text = " ".join((command.help or "").split())
    lines = ["", f"## {name}", "", text, "", f"    {usage}", ""]
    if parameters:
        lines += ["| option | default | meaning |", "|---|---|---|", *map(_row, parameters)]
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    name = (
        ", ".join(f"`{option}`" for option in parameter.opts)
        if parameter.param_type_name == "option"
        else f"`{_metavar(parameter)}`"
    )
    given = "required" if parameter.required else "" if parameter.default in (None, ()) else f"`{parameter.default}`"
    return f"| {name} | {given} | {' '.join((parameter.help or '').split()).replace('|', chr(92) + '|')} |"


def _usage(parameter: Any) -> str:
    return _metavar(parameter) if parameter.param_type_name == "argument" else f"{parameter.opts[0]} {_metavar(parameter)}"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _sentence(command: Any) -> str:
    return " ".join((command.help or "").split()).split(". ")[0].rstrip(".").replace("|", "\\|")


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
