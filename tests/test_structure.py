"""The structure of the code, read off its syntax trees: who imports whom, who takes the whole configuration, what is too long."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prectr_torchrec"
NAME = "prectr_torchrec"

MAY_IMPORT: dict[str, set[str]] = {
    "launchers": {"system"},
    "system": set(),
    "config": {"system"},
    "metrics": {"data.levels"},
    "runs": {"config", "system"},
    "data": {"config", "runs", "system"},
    "distributed": {"config", "runs", "system", "data", "modules"},
    "checkpoints": {"distributed", "data", "runs", "config", "system", "metrics"},
    "text": {"data", "distributed", "checkpoints", "runs", "metrics", "modules", "config", "system"},
    "models": {"text", "data", "modules", "config", "system"},
    "training": {"models", "text", "checkpoints", "distributed", "data", "runs", "config", "system", "modules", "metrics"},
    "evaluation": {
        "state",
        "training",
        "checkpoints",
        "data",
        "metrics",
        "runs",
        "config",
        "system",
        "modules",
        "distributed",
        "models",
    },
    "serving": {
        "models",
        "state",
        "checkpoints",
        "evaluation",
        "data",
        "runs",
        "config",
        "system",
        "modules",
        "distributed",
        "text",
    },
    "state": {"data", "config", "runs", "system"},
    "baselines": {"modules", "evaluation", "state", "data", "config", "runs", "system", "metrics", "text"},
}
"""What each folder may import beside itself; `cli` may import all of them."""
ALSO: dict[str, set[str]] = {"data.reader": {"modules.inputs"}, "config": {"modules"}}
"""What parts of a folder may import beyond that: the reader fills the models' inputs, `config/` takes the modules' `Config`
classes."""

CODE = ("prectr_torchrec", "modules", "launchers", "benchmarks", "tests")
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION, MOST_LINES_UNFORMATTED = 400, 60, 10
MOST_TAKE_THE_WHOLE_CONFIGURATION = 14
"""What checks a configuration as a whole, and what builds at the top of a command."""


class Import(NamedTuple):
    """An import of the project's own code."""

    module: str
    """That imports, below the package: `data.reader.reader`."""
    imported: str
    line: int
    typing_only: bool
    in_function: bool


def _files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


FILES = _files(*CODE)
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def _module(path: Path) -> str:
    """`prectr_torchrec/data/levels.py` is `data.levels`, and `modules/` and `launchers/` lie below the package too."""
    base = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__") or "__init__"


MODULES = {_module(path): path for path in _files("prectr_torchrec", "modules", "launchers")}


def _imports(module: str) -> Iterator[Import]:
    def walk(node: ast.AST, typing_only: bool, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom | ast.Import):
                for imported in _imported(module, child):
                    yield Import(module, imported, child.lineno, typing_only, in_function)
            checks = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from walk(child, typing_only or checks, in_function or function)

    yield from walk(TREES[MODULES[module]], False, False)


def _imported(module: str, statement: ast.ImportFrom | ast.Import) -> Iterator[str]:
    """Modules of the project, below the package."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    else:
        package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
        for _ in range(statement.level - 1):
            package = package.rpartition(".")[0]
        base = ".".join(filter(None, [NAME, package, statement.module])) if statement.level else statement.module
        names = [f"{base}.{alias.name}" for alias in statement.names]
    for name in names:
        if name.startswith(f"{NAME}."):
            below = name.removeprefix(f"{NAME}.")
            yield below if below in MODULES else below.rpartition(".")[0]


IMPORTS = [found for module in MODULES for found in _imports(module)]


def _folder(module: str) -> str:
    return module.split(".")[0]


def _within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def test_each_folder_imports_only_what_it_may() -> None:
    wrong = []
    for found in IMPORTS:
        folder = _folder(found.module)
        if folder in (_folder(found.imported), "cli", "__init__"):
            continue
        allowed = MAY_IMPORT.get(folder, set()).union(*(more for part, more in ALSO.items() if _within(found.module, {part})))
        if not _within(found.imported, allowed):
            wrong.append(f"{found.module}, line {found.line}: {found.imported}")
    assert not wrong
    assert {_folder(found.imported) for found in IMPORTS} > {"system", "config", "data", "modules"}, "imports are found"


def test_the_picture_of_the_layout_is_the_table() -> None:
    tree = ast.parse((ROOT / "docs" / "figures" / "draw.py").read_text(encoding="utf-8"))
    rows = next(node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROWS")
    assert isinstance(rows, ast.List)
    texts = [re.findall(r"\('(\w+)'", ast.unparse(row)) for row in reversed(rows.elts)]
    height = {folder: number for number, row in enumerate(texts) for folder in row}
    assert height.keys() == {*MAY_IMPORT, "modules", "cli"}
    assert not [
        f"{folder}: {name}" for folder, names in MAY_IMPORT.items() for name in names if height[_folder(name)] >= height[folder]
    ]
    drawn = (ROOT / "docs" / "figures" / "layout.svg").read_text(encoding="utf-8")
    assert not [folder for folder in height if f">{folder}<" not in drawn]


def test_no_import_of_another_folder_is_hidden_in_a_function() -> None:
    hidden = [f for f in IMPORTS if f.in_function and _folder(f.module) not in (_folder(f.imported), "cli", "__init__")]
    assert not [f"{found.module}, line {found.line}: {found.imported}" for found in hidden]


def test_modules_import_each_other_in_no_circle() -> None:
    edges: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in IMPORTS:
        within_folder = _folder(found.module) == _folder(found.imported)
        if found.imported != found.module and not (found.typing_only and within_folder):
            edges[found.module].add(found.imported)
    while leaves := [module for module, imported in edges.items() if not imported & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert not edges, f"in circles, or importing one: {sorted(edges)}"


def test_few_functions_take_the_whole_configuration() -> None:
    """All others take the sections that they read."""
    found = [
        f"{_module(path)}.{function.name}"
        for path in _files("prectr_torchrec", "modules", "launchers")
        for function in _functions(path)
        if any("RunConfig" in ast.unparse(a.annotation) for a in _arguments(function) if a.annotation is not None)
    ]
    assert len(found) <= MOST_TAKE_THE_WHOLE_CONFIGURATION, found


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(TREES[path]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    arguments = function.args
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]


def test_files_and_functions_are_short() -> None:
    files = {str(p.relative_to(ROOT)) for p in FILES if len(p.read_text(encoding="utf-8").splitlines()) > MOST_LINES_OF_A_FILE}
    functions = {
        f"{path.relative_to(ROOT)}: {function.name}"
        for path in FILES
        for function in _functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    }
    assert not files
    assert not functions


def test_a_name_is_that_of_one_file() -> None:
    """`base.py` says in each folder what its other files build on; a section in `config/` is named like what it configures."""
    modules: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if path.name not in ("__init__.py", "base.py") and _folder(module) != "config":
            modules.setdefault(path.stem, set()).add(module)
    found = {name: where for name, where in modules.items() if len(where) > 1}
    assert not found


def test_the_formatter_is_obeyed() -> None:
    mark = "# fmt: " + "skip"
    assert sum(path.read_text(encoding="utf-8").count(mark) for path in FILES) <= MOST_LINES_UNFORMATTED
