"""Every public class says how it is used, and what it says runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from prectr_torchrec import modules
from prectr_torchrec.modules import attention, losses, parts, rankers


def _kinds() -> dict[str, Any]:
    """What stands in the files of attention, losses, parts and rankers: a new one needs no line in `modules/__init__.py`."""
    names = [
        f"{package.__name__}.{file.name}"
        for package in (attention, losses, parts, rankers)
        for file in pkgutil.iter_modules(package.__path__)
    ]
    return {
        name: value
        for module in map(importlib.import_module, names)
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    }


PUBLIC: dict[str, Any] = {name: getattr(modules, name) for name in modules.__all__}
PUBLIC |= {name: value for name, value in _kinds().items() if inspect.isclass(value) or inspect.isfunction(value)}
CLASSES = {name for name, value in PUBLIC.items() if inspect.isclass(value)}
RECORDS = {
    name
    for name in CLASSES
    if issubclass(PUBLIC[name], tuple) or is_dataclass(PUBLIC[name]) or getattr(PUBLIC[name], "_is_protocol", False)
}
"""Named tuples, dataclasses and protocols: what they hold is described field by field."""


def section(value: Any, title: str) -> str:
    """What stands indented under a title in a docstring, its own and not inherited; empty without it."""
    _, _, below = inspect.cleandoc(value.__doc__ or "").partition(f"\n{title}\n")
    lines = below.splitlines()
    end = next((number for number, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return textwrap.dedent("\n".join(lines[:end])).strip()


EXAMPLES = {name: code for name, value in PUBLIC.items() if (code := section(value, "Example::"))}
ARGUED = [
    name
    for name, value in PUBLIC.items()
    if inspect.isfunction(value) or (name in CLASSES - RECORDS and "__init__" in vars(value))
]
"""Functions, and classes with a constructor of their own."""


def test_every_public_class_is_exported() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(modules.__file__).parent.rglob("*.py")]
    defined = {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    assert {name for name in defined if not name.startswith("_")} == CLASSES


def test_every_public_class_has_an_example() -> None:
    assert sorted(CLASSES - RECORDS - EXAMPLES.keys()) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str) -> None:
    torch.manual_seed(0)
    exec(compile(EXAMPLES[name], f"Example of {name}", "exec"), {"torch": torch, **PUBLIC})


@pytest.mark.parametrize("name", ARGUED)
def test_every_argument_has_a_meaning(name: str) -> None:
    described = re.findall(r"^([\w, ]+):", section(PUBLIC[name], "Args:"), re.MULTILINE)
    arguments = set(inspect.signature(PUBLIC[name]).parameters)
    assert arguments == {argument.strip() for names in described for argument in names.split(",")}


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_every_field_of_a_record_has_a_meaning(name: str) -> None:
    (record,) = ast.parse(textwrap.dedent(inspect.getsource(PUBLIC[name]))).body
    assert isinstance(record, ast.ClassDef) and ast.get_docstring(record)
    attributes = re.findall(r"^(\w+):", section(PUBLIC[name], "Attributes:"), re.MULTILINE)
    for field, after in zip(record.body, [*record.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and not (own := ast.unparse(field.target)).startswith("_") and own not in attributes:
            described = (
                isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
            )
            assert described, f"{own} of {name}"
