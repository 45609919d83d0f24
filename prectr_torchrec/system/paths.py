"""Paths as users give them. A URL is no path of this machine, and is refused before a folder of its name is made."""

from __future__ import annotations

import functools
import glob
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes one slash of two


class PathError(ValueError):
    """No path of this machine."""


def check_local(path: str | Path, name: str = "") -> None:
    """Refuses what is no path of this machine.

    Args:
        path: as given.
        name: of the argument or setting, for the message.

    Raises:
        PathError: it names a scheme, such as `s3://`.
    """
    text = str(path)
    found = _SCHEME.match(text)
    if found or "://" in text:
        where = f"{name}: " if name else ""
        scheme = f"{found[0]}/" if found else "a URL"
        folder = "" if "://" in text else "; a folder that is called so is given by its absolute path"
        raise PathError(
            f"{where}{text!r}: {scheme} is not supported, only paths of this machine are; mount the bucket, or copy the "
            f"files{folder}"
        )


def local_path(path: str | Path, name: str = "") -> Path:
    """The path, if it is one of this machine.

    Raises:
        PathError: as of `check_local`.
    """
    check_local(path, name)
    return Path(path)


def check_arguments(words: Sequence[str] | None = None) -> None:
    """Refuses a command line that names a URL anywhere; without words that of this process.

    Raises:
        PathError: names the option.
    """
    option = ""
    for word in sys.argv[1:] if words is None else words:
        name, separator, value = word.partition("=") if word.startswith("--") else (option, "", word)
        if not word.startswith("--") or separator:
            check_local(value, name)
        option = word if word.startswith("--") and not separator else ""


def only_local(function: Function) -> Function:
    """A function that refuses URLs in the arguments that are annotated as paths, and gets `unambiguous` ones."""
    signature = inspect.signature(function)
    paths = [name for name, parameter in signature.parameters.items() if "Path" in str(parameter.annotation)]

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        for name in given.arguments.keys() & set(paths):
            given.arguments[name] = _checked(given.arguments[name], name)
        return function(*given.args, **given.kwargs)

    return checked  # type: ignore[return-value]


def unambiguous(path: str | Path) -> Path:
    """The path, absolute where a library would take its head for a scheme: `md:x` is a cloud's database to DuckDB."""
    return Path(path).absolute() if ":" in str(path) else Path(path)


def literal(path: Path) -> str:
    """A path for DuckDB, which expands patterns: absolute, and meaning this one file whatever its name.

    Raises:
        PathError: a backslash beside a character of patterns, which cannot be written so that it means itself.
    """
    text = str(path.absolute())
    if glob.has_magic(text):
        _refuse_odd(text, "\\")
    return glob.escape(text)


def check_database(path: Path) -> None:
    """Refuses a place where DuckDB cannot make a database.

    Raises:
        PathError: a character that it takes for a separator or for the beginning of options.
    """
    _refuse_odd(str(path), "\\?")


def _refuse_odd(path: str, characters: str) -> None:
    if odd := next((character for character in characters if character in path), None):
        raise PathError(
            f"{path}: {odd!r} in a path means something else to DuckDB, which reads and sorts logs; rename the folder"
        )


def _checked(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _checked(path, name) for key, path in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(path, name) for path in value]
    if not isinstance(value, str | Path):
        return value
    check_local(value, name)
    return unambiguous(value)
