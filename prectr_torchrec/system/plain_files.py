"""JSON and YAML files that others may have written or damaged: read with their names in every complaint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from prectr_torchrec.system.errors import ConfigError


def read_json(path: Path, shape: Any = dict[str, Any]) -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        shape: the type that it must have, a `TypedDict` where keys are needed; further keys stay.

    Raises:
        ValueError: it is not JSON, or of another shape; names the file and the key.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}; restore the file") from None
    check_shape(found, shape, path)
    return found


def check_shape(value: Any, shape: Any, path: Path) -> None:
    """Raises ValueError where the value of a JSON file is not of a type, as of `read_json`."""
    try:
        TypeAdapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f"{part}: " for part in first["loc"])
        raise ValueError(f"{path}: {key}{first['msg']}; got {_short(first['input'])}; restore the file") from None


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The plain values of nested mappings, by `key.sub`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@contextlib.contextmanager
def made_of(*paths: Path) -> Iterator[None]:
    """Names the files whose values are used within, where these are not what they should be.

    Raises:
        ValueError: a key is missing, or a value is of another kind.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise ValueError(f"{', '.join(map(str, paths))}: damaged, or of another release ({found}); write it again") from error


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file; what it says of Python objects is refused.

    Raises:
        ConfigError: it is not YAML, or a mapping has a key twice; names the file.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date that does not exist
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


class _EachKeyOnce(yaml.SafeLoader):
    """Of two equal keys the plain loader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        written = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]  # `<<` brings others, which these override
        seen: set[str] = set()
        for key in written:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
