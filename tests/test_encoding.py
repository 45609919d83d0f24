"""Text files are read and written as UTF-8, whatever the machine's locale."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("prectr_torchrec", "modules", "launchers", "benchmarks", "tests", "docs", "packaging")


def is_text_file(call: ast.Call) -> bool:
    """Whether a call reads or writes a file as text, as far as its own words tell."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    words = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    modes = [word for word in words if isinstance(word, str) and word and set(word) <= set("rwxabt+")]
    bare = isinstance(call.func, ast.Name) and len(call.args) == 1
    return name in ("read_text", "write_text") or (name == "open" and (bare or any("b" not in mode for mode in modes)))


def without_encoding(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and is_text_file(node) and not any(word.arg == "encoding" for word in node.keywords):
            yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_every_text_file_is_opened_as_utf8() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert [place for path in files for place in without_encoding(path)] == []
